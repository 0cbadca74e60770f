"""The same script run on scvi-tools' SCVI and on ours: types, shapes, names, and numbers.

Each package trains a model by the same call; ours is then given scvi-tools' weights. Where both take the means for
draws from a normal, most results are numbers that must agree. Drawn counts are compared by their average.
"""

import functools
import importlib
import inspect

import numpy as np
import pandas as pd
import pytest
import rich.console
import rich.pretty
import rich.table  # noqa: F401
import scvi
import sparse
import surface_script
import torch
from noise import no_noise
from pairs import CASES, SETUPS, make_cells
from test_peer_scanvi import Pair

import scdecode as sd
from scdecode.formats.scvi_names import to_ours

IMPORTS = {"theirs": "scvi.model", "ours": "scdecode"}

SMALL = {"n_hidden": 16, "n_latent": 4}
RANDOM = ("latent, draw", "expression, overall", "correlation", "counts")
"""Beginnings of the names of results that stay random."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval:UserWarning"),
]


@pytest.fixture(autouse=True)
def seed():
    """scvi-tools draws from torch's own generator."""
    scvi.settings.seed = 1


def facts(case):
    """What the script must know of a case."""
    setup, options = CASES[case]
    return {
        "batches": "batch_key" in SETUPS[setup],
        "dispersed": options.get("gene_likelihood", "zinb") in ("nb", "zinb"),
        "learned": not options.get("use_observed_lib_size", True),
        "embedded": "embedding" in case,
    }


@functools.cache
def models(case):
    """The model of each package, of the same cells; ours with the weights of theirs."""
    setup, options = CASES[case]
    found = {}
    for name, module in IMPORTS.items():
        adata = make_cells()
        scvi.settings.seed = 0
        found[name] = surface_script.make(importlib.import_module(module).SCVI, adata, SETUPS[setup], SMALL | options)
    state, _ = to_ours(found["theirs"].module.state_dict(), found["ours"].config)
    found["ours"].vae.load_state_dict(state)
    return found


def kind(result):
    """All about a result but its numbers: types, shapes, names, kinds of numbers."""
    match result:
        case dict():
            return {name: kind(value) for name, value in result.items()}
        case tuple() | list():
            return type(result), [kind(value) for value in result]
        case pd.DataFrame():
            index = (result.index.name, result.index.dtype, list(result.index))
            return "table", index, list(result.columns), result.columns.name, list(result.dtypes)
        case np.ndarray() | torch.Tensor() | sparse.GCXS():
            return type(result), tuple(result.shape), result.dtype
        case _:
            return type(result)


def numbers(result):
    """A result as one or more arrays."""
    match result:
        case dict():
            return [array for name in sorted(result) for array in numbers(result[name])]
        case tuple():
            return [array for value in result for array in numbers(value)]
        case sparse.GCXS():
            return [result.todense()]
        case None | str() | bool():
            return []
        case list():
            return []
    return [np.asarray(result, dtype=np.float64)]


def stays_random(name, case):
    """Ours draws the mean of a logistic normal, and latent points, from a generator of its own.

    scvi-tools weighs the draws of a logistic normal by densities at their softmax, which are not those of the draws.
    """
    return name.startswith(RANDOM) or (
        "ln" in case and name in ("latent", "latent, positional", "marginal", "marginal, cells")
    )


def without_view(results):
    """Ours prints other columns of other tables."""
    return {name: value for name, value in results.items() if not name.startswith(("view, rows", "history"))}


@pytest.fixture
def at_the_mean():
    """Draws from a normal are its mean, in both packages."""
    with no_noise():
        yield


CHOSEN = [case for case in CASES if "shallow" not in case and "layer norm" not in case]


@pytest.mark.parametrize("case", CHOSEN)
def test_the_script(case, at_the_mean):
    results = {name: surface_script.run(m, m.adata, **facts(case)) for name, m in models(case).items()}
    theirs, ours = results["theirs"], results["ours"]
    assert list(ours) == list(theirs)
    for name, value in without_view(theirs).items():
        assert kind(ours[name]) == kind(value), name
        if stays_random(name, case):
            continue
        for one, other in zip(numbers(ours[name]), numbers(value), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=name)
    histories_agree(ours["history"], theirs["history"])
    assert {"n_cells", "n_vars", "X"} <= set(ours["view, rows"]) & set(theirs["view, rows"])


def histories_agree(ours, theirs):
    """Each quantity, with the epochs; scvi-tools keeps numbers as objects, and no weight of the first epoch."""
    assert set(ours) == set(theirs)
    for name, table in ours.items():
        assert list(table.columns) == list(theirs[name].columns)
        assert (table.index.name, table.index.dtype) == (theirs[name].index.name, theirs[name].index.dtype)
        assert table.dtypes.iloc[0] == np.float64
        assert str(theirs[name].dtypes.iloc[0]) == "object"
        if name == "kl_weight":
            pd.testing.assert_frame_equal(table.iloc[1:], theirs[name].astype(float), rtol=1e-5, check_index_type=False)
        else:
            assert table.index.tolist() == theirs[name].index.tolist()


@pytest.mark.parametrize("case", ["zinb, no conditions", "nb, gene-batch, learned library", "normal, no batch norm"])
def test_draws_agree_on_average(case):
    """Posterior predictive counts, z drawn too: the mean of each gene over cells and draws."""
    means, errors = {}, {}
    for name, model in models(case).items():
        drawn = model.posterior_predictive_sample(n_samples=60).todense()
        assert drawn.shape == (200, 30, 60)
        means[name], errors[name] = drawn.mean((0, 2)), drawn.mean(0).std(-1) / np.sqrt(60)
    z = np.abs(means["ours"] - means["theirs"]) / np.hypot(errors["ours"], errors["theirs"])
    assert z.max() < 4.5
    theirs, ours = (m.get_normalized_expression(n_samples=60, return_numpy=True) for m in models(case).values())
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), rtol=0.03)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("case", ["zinb, no conditions", "nb, batch"])
def test_correlations_agree_on_average(case):
    """Gene by gene, of many draws."""
    tables = [m.get_feature_correlation_matrix(n_samples=40).to_numpy() for m in models(case).values()]
    assert np.abs(tables[0] - tables[1]).max() < 0.06


@pytest.mark.parametrize("case", ["zinb, no conditions", "nb, gene-batch, learned library"])
def test_the_marginal_likelihood_of_many_draws(case):
    """The same estimator: with the same number of draws it has the same mean."""
    rows = np.arange(60)
    theirs, ours = (
        m.get_marginal_ll(indices=rows, n_mc_samples=200, return_mean=False).numpy() for m in models(case).values()
    )
    difference = ours - theirs
    assert abs(difference.mean()) < 4.5 * difference.std() / np.sqrt(60)


@pytest.mark.parametrize("case", ["zinb, no conditions", "nb, batch, learned library", "nb, ln, embedding"])
def test_the_bound_of_a_model_with_cell_types(case, at_the_mean):
    """scANVI's own, not that of the scVI within it."""
    pair = Pair(case)
    theirs, ours = (m.get_elbo(return_mean=False) for m in (pair.theirs, pair.ours))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    theirs, ours = (m.get_reconstruction_error(return_mean=False) for m in (pair.theirs, pair.ours))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_second_anndata_needs_no_setup(at_the_mean):
    """Its cells in another order; scvi-tools wants its genes in the order of the first."""
    tables = []
    for model in models("nb, covariates, two layers").values():
        other = make_cells()[::-2].copy()
        tables.append(model.get_normalized_expression(other, library_size="latent"))
    pd.testing.assert_frame_equal(tables[1], tables[0], rtol=1e-4)


def test_the_arguments_have_the_same_order_and_defaults():
    """Of every method of ours that scvi-tools has, but for annotations; ours may have more, by keyword."""

    methods = [
        "setup_anndata",
        "train",
        "get_latent_representation",
        "get_latent_library_size",
        "get_batch_representation",
        "get_normalized_expression",
        "get_likelihood_parameters",
        "posterior_predictive_sample",
        "get_feature_correlation_matrix",
        "get_elbo",
        "get_reconstruction_error",
        "get_marginal_ll",
        "view_anndata_setup",
    ]

    def positional(cls, method):
        signature = inspect.signature(getattr(cls, method))
        names = [(p.name, p.default) for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        return [pair for pair in names if pair[0] not in ("self", "model")]

    for method in methods:
        assert positional(sd.SCVI, method) == positional(scvi.model.SCVI, method), method
