"""Both ways over the bridge, for a covering grid of options: saved there, opened here; written here, opened there.

``pytest -s`` prints the largest differences at the end.
"""

import warnings

import numpy as np
import pytest
import scvi
import torch
from grid import (
    GRID,
    N_CELLS,
    QUIET,
    VALUES,
    WORST,
    Bridge,
    all_pairs,
    compare,
    make_cells,
    name_of,
    our_answers,
    pairs_of,
    questions,
    save_and_open,
    setup_and_options,
    their_answers,
    trained,
)
from noise import no_noise

import scdecode as sd
from scdecode.errors import ConditionWarning, SupportWarning
from scdecode.formats import scvi_tools

NETWORK, BOUND = 1e-5, 1e-4
LABELS = {"labels_key": "cell_type", "unlabeled_category": "Astray"}


@pytest.fixture(scope="module", autouse=True)
def _report():
    yield
    print("\nlargest relative differences:")
    for quantity, (largest, n) in sorted(WORST.items()):
        print(f"  {quantity:<45} {largest:.1e} of {n:,} numbers")


@pytest.fixture(params=range(len(GRID)), ids=[f"{i}-{name_of(case)}" for i, case in enumerate(GRID)])
def bridge(request):
    return trained(request.param)


def test_the_grid_has_every_pair_of_options():
    assert len(GRID) >= 48
    assert set.union(*map(pairs_of, GRID)) == all_pairs(VALUES)


def assert_they_decode_the_same(ours, theirs, setup, where, n_points=4):
    z_nk, our_arguments, their_arguments = questions(theirs, setup, n_points)
    expected, found = their_answers(theirs, their_arguments), our_answers(ours, z_nk, our_arguments)
    assert set(found) == set(expected)
    for quantity, values in expected.items():
        compare(f"{where}: {quantity}", found[quantity], values, NETWORK)


def assert_they_encode_the_same(ours, theirs, adata, where):
    mean, variance = theirs.get_latent_representation(adata, return_dist=True)
    posterior = ours.posterior(adata)
    compare(f"{where}: posterior mean", posterior.mean, mean, NETWORK, beside=np.sqrt(variance))
    compare(f"{where}: posterior variance", posterior.variance, variance, NETWORK)


def assert_they_find_cells_as_likely(ours, theirs, adata, where):
    with no_noise():
        for method in ("get_elbo", "get_reconstruction_error"):
            one = getattr(ours, method)(adata, return_mean=False)
            other = getattr(theirs, method)(adata, return_mean=False)
            if isinstance(other, dict):
                assert set(one) == set(other)
                one, other = one["reconstruction_loss"], other["reconstruction_loss"]
            compare(f"{where}: {method}", one.reshape(-1), other.reshape(-1), BOUND)


def assert_it_comes_back_whole(bridge, path):
    """Written by us, a model of scvi-tools is the same to scvi-tools."""
    scvi_tools.write(path, bridge.ours.stored())
    again = type(bridge.theirs).load(path, adata=make_cells(), accelerator="cpu")
    before, after = bridge.theirs.module.state_dict(), again.module.state_dict()
    assert set(before) == set(after)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if isinstance(tensor, torch.Tensor))
    _, _, arguments = questions(bridge.theirs, bridge.setup)
    expected, found = their_answers(bridge.theirs, arguments), their_answers(again, arguments)
    assert all(torch.equal(found[quantity], values) for quantity, values in expected.items())
    assert again.is_trained
    for name, table in bridge.theirs.history.items():
        np.testing.assert_array_equal(again.history[name].dropna()[name].astype(float), table[name].astype(float))


# -- SCVI, over the grid -----------------------------------------------------------------------------------------------


def test_saved_there_and_opened_here(bridge):
    assert_they_decode_the_same(bridge.ours, bridge.theirs, bridge.setup, "SCVI")
    assert_they_encode_the_same(bridge.ours, bridge.theirs, bridge.adata, "SCVI")
    assert_they_find_cells_as_likely(bridge.ours, bridge.theirs, bridge.adata, "SCVI")


def test_written_back_and_opened_there(bridge, tmp_path):
    assert_it_comes_back_whole(bridge, tmp_path / "model")


def trained_here(kind, setup, options):
    adata = make_cells()
    getattr(sd, kind).setup_anndata(adata, **setup)
    ours = getattr(sd, kind)(adata, **options)
    ours.train(1, batch_size=50, lr=0.02, device="cpu", progress=False)
    return ours


def assert_trained_here_it_opens_there(ours, setup, path, where):
    scvi_tools.write(path, ours.stored())
    theirs = getattr(scvi.model, type(ours).__name__).load(path, adata=make_cells(), accelerator="cpu")
    assert theirs.is_trained
    assert_they_encode_the_same(ours, theirs, make_cells(), where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SupportWarning)
        warnings.simplefilter("ignore", ConditionWarning)  # not every combination has a cell
        assert_they_decode_the_same(ours, theirs, setup, where, n_points=1)
    return theirs


@pytest.mark.parametrize("number", range(len(GRID)))
def test_trained_here_and_opened_there(number, tmp_path):
    setup, options = setup_and_options(GRID[number])
    ours = trained_here("SCVI", setup, options)
    assert_trained_here_it_opens_there(ours, setup, tmp_path / "model", "SCVI trained by scdecode")


# -- LinearSCVI --------------------------------------------------------------------------------------------------------

LINEAR = {
    "plain": ({}, {}),
    "zinb, batch, bias": ({"batch_key": "donor"}, {"gene_likelihood": "zinb", "bias": True, "use_batch_norm": False}),
    "gene-batch, observed": ({"batch_key": "donor"}, {"dispersion": "gene-batch", "use_observed_lib_size": True}),
    "poisson, ln, two layers": (
        {"batch_key": "donor", "labels_key": "cell_type"},
        {"gene_likelihood": "poisson", "latent_distribution": "ln", "n_layers": 2},
    ),
}


@pytest.mark.parametrize("case", LINEAR)
def test_a_linear_model(case, tmp_path):
    setup, options = LINEAR[case]
    options = {"n_hidden": 8, "n_latent": 3} | options
    adata = make_cells()
    scvi.settings.seed = 0
    scvi.model.LinearSCVI.setup_anndata(adata, **setup)
    theirs = scvi.model.LinearSCVI(adata, **options)
    theirs.train(max_epochs=1, batch_size=50, train_size=1.0, plan_kwargs={"lr": 0.02}, **QUIET)
    bridge = Bridge(theirs, adata, setup, options, *save_and_open(theirs, f"linear_{case}"))
    assert isinstance(bridge.ours, sd.LinearSCVI)
    assert_they_decode_the_same(bridge.ours, theirs, setup, "LinearSCVI")
    assert_they_encode_the_same(bridge.ours, theirs, adata, "LinearSCVI")
    assert_they_find_cells_as_likely(bridge.ours, theirs, adata, "LinearSCVI")
    loadings = theirs.get_loadings().to_numpy()
    largest = np.abs(loadings).max()  # they may be near zero
    compare("LinearSCVI: loadings", bridge.ours.get_loadings(), loadings, NETWORK, beside=largest)
    assert_it_comes_back_whole(bridge, tmp_path / "back")
    assert_trained_here_it_opens_there(
        trained_here("LinearSCVI", setup, options), setup, tmp_path / "ours", "LinearSCVI trained by scdecode"
    )


# -- SCANVI ------------------------------------------------------------------------------------------------------------

CLASSES = {
    "plain": ({}, {}),
    "covariates, learned library, two layers": (
        {"batch_key": "donor", "categorical_covariate_keys": ["chem"], "continuous_covariate_keys": ["age"]},
        {"gene_likelihood": "nb", "use_observed_lib_size": False, "n_layers": 2, "encode_covariates": True},
    ),
    "linear classifier": ({"batch_key": "donor"}, {"linear_classifier": True, "gene_likelihood": "poisson"}),
    "another classifier": (
        {"batch_key": "donor", "size_factor_key": "factor"},
        {"classifier_parameters": {"n_layers": 2, "n_hidden": 7, "dropout_rate": 0.3}, "dispersion": "gene-batch"},
    ),
    "ln, embedding": (
        {"batch_key": "donor"},
        {"latent_distribution": "ln", "batch_representation": "embedding", "use_layer_norm": "both"},
    ),
    "no batch norm": ({"batch_key": "donor"}, {"use_batch_norm": "none", "dispersion": "gene-cell"}),
    "from_scvi_model": ({"batch_key": "donor"}, {}),
    "from_scvi_model, linear classifier": ({"batch_key": "donor"}, {"linear_classifier": True}),
}


def with_classes(case):
    """A SCANVI that scvi-tools trained and saved."""
    setup, options = CLASSES[case]
    setup, sizes = LABELS | setup, {"n_hidden": 8, "n_latent": 3}
    adata = make_cells()
    scvi.settings.seed = 0
    if case.startswith("from"):
        first = {key: value for key, value in setup.items() if key != "unlabeled_category"}
        scvi.model.SCVI.setup_anndata(adata, **first)
        base = scvi.model.SCVI(adata, **sizes)
        base.train(max_epochs=1, batch_size=50, train_size=1.0, **QUIET)
        theirs = scvi.model.SCANVI.from_scvi_model(base, "Astray", **options)
    else:
        scvi.model.SCANVI.setup_anndata(adata, **setup)
        theirs = scvi.model.SCANVI(adata, **sizes, **options)
    theirs.train(max_epochs=1, batch_size=64, train_size=1.0, plan_kwargs={"lr": 0.02}, **QUIET)
    theirs.module.eval()
    return Bridge(theirs, adata, setup, sizes | options, *save_and_open(theirs, f"classes_{case}"))


@pytest.mark.parametrize("case", CLASSES)
def test_a_model_with_classes(case, tmp_path):
    bridge = with_classes(case)
    ours, theirs = bridge.ours, bridge.theirs
    assert isinstance(ours, sd.SCANVI)
    assert_they_decode_the_same(ours, theirs, bridge.setup, "SCANVI")
    assert_they_encode_the_same(ours, theirs, bridge.adata, "SCANVI")
    assert_they_find_cells_as_likely(ours, theirs, bridge.adata, "SCANVI")
    soft = ours.predict(bridge.adata, soft=True)
    assert list(soft.columns) == list(theirs.predict(soft=True).columns)
    compare("SCANVI: probabilities", soft, theirs.predict(soft=True), NETWORK)
    np.testing.assert_array_equal(ours.predict(bridge.adata), theirs.predict())
    assert_it_comes_back_whole(bridge, tmp_path / "back")
    back = scvi.model.SCANVI.load(tmp_path / "back", adata=make_cells(), accelerator="cpu")
    np.testing.assert_array_equal(back.predict(soft=True), theirs.predict(soft=True))

    if case.startswith("from"):
        base = trained_here(
            "SCVI", {key: bridge.setup[key] for key in ("batch_key", "labels_key")}, {"n_hidden": 8, "n_latent": 3}
        )
        own = sd.SCANVI.from_scvi_model(base, "Astray", **CLASSES[case][1])
        own.train(1, device="cpu", progress=False)
    else:
        own = trained_here("SCANVI", bridge.setup, bridge.options)
    where = "SCANVI trained by scdecode"
    opened = assert_trained_here_it_opens_there(own, bridge.setup, tmp_path / "ours", where)
    compare(f"{where}: probabilities", own.predict(soft=True), opened.predict(soft=True), NETWORK)
    assert len(own.predict()) == N_CELLS


# -- models that were carried over to new cells ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SCVI", "SCANVI"])
def test_a_model_of_new_cells(kind, tmp_path):
    """``load_query_data``: the new cells have a batch of their own, which stands last among the levels."""
    setup = {"batch_key": "donor", "categorical_covariate_keys": ["chem"]} | LABELS
    if kind == "SCVI":
        del setup["unlabeled_category"]
    how = {"max_epochs": 1, "batch_size": 64, "train_size": 1.0, **QUIET}
    first, second = make_cells(), make_cells(seed=3)
    second.obs["donor"] = second.obs["donor"].replace({10: 1})
    getattr(scvi.model, kind).setup_anndata(first, **setup)
    base = getattr(scvi.model, kind)(first, n_hidden=8, n_latent=3, encode_covariates=True, use_layer_norm="both")
    base.train(**how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of lightning: the networks come in evaluation mode
        theirs = getattr(scvi.model, kind).load_query_data(second, base, accelerator="cpu")
        theirs.train(**how)
    theirs.module.eval()
    bridge = Bridge(theirs, second, setup, {}, *save_and_open(theirs, f"query_{kind}"))
    assert bridge.ours.schema.batch.names == ("2", "9", "10", "1")
    assert_they_decode_the_same(bridge.ours, theirs, setup, f"{kind} of new cells")
    assert_they_encode_the_same(bridge.ours, theirs, second, f"{kind} of new cells")
    scvi_tools.write(tmp_path / "back", bridge.ours.stored())
    back = type(theirs).load(tmp_path / "back", adata=second.copy(), accelerator="cpu")
    after = back.module.state_dict()
    tensors = {name: t for name, t in theirs.module.state_dict().items() if isinstance(t, torch.Tensor)}
    assert all(torch.equal(tensor, after[name]) for name, tensor in tensors.items())
