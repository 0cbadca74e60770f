"""Generated cells: which reference cells they come from, how like real cells they are, and what is refused."""

from __future__ import annotations

import json
import random
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode.errors import ConditionError, ConditionWarning, InputError, NotTrainedError

LABELS = ("trunk", "branch_1", "branch_2")


def table_of(model):
    """The reference cells: a row each, with the names of their conditions."""
    schema, reference = model.schema, model.reference()
    categories = (schema.batch, *schema.categorical, schema.labels)
    columns = {c.key: np.array(c.names)[reference.codes_rc[:, j]] for j, c in enumerate(categories) if c is not None}
    return pd.DataFrame(columns | {key: reference.continuous_rd[:, j] for j, key in enumerate(schema.continuous)})


def same(first, second):
    return (first.X != second.X).nnz == 0 and np.array_equal(first.obsm["latent"], second.obsm["latent"])


# -- like real cells ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known():
    """A model of 1,500 cells of three kinds in two batches, and 700 other cells of the same truth."""
    adata = sd.datasets.simulate_branching(2200, 150, n_batches=2, seed=1, truth_layers=False)
    train = adata[:1500].copy()
    model = make_model(
        train,
        setup={"batch_key": "batch", "labels_key": "branch"},
        epochs=45,
        train={"lr": 1e-2, "n_epochs_kl_warmup": 15},
        n_latent=5,
        n_hidden=64,
    )
    return model, adata[1500:].copy()


def log_mean(cells):
    return np.log(np.asarray(cells.X.mean(axis=0)).reshape(-1) + 0.05)


def nearest_label(model, cells):
    """The label whose reference cells' middle is nearest to what the encoder makes of the counts of each cell."""
    latent_rk, label_r = model.reference_latents(), table_of(model)["branch"].to_numpy()
    centres = np.stack([latent_rk[label_r == label].mean(axis=0) for label in LABELS])
    latent_nk = model.get_latent_representation(cells)
    return np.array(LABELS)[((latent_nk[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)]


@pytest.mark.parametrize("label", LABELS)
def test_generated_cells_are_like_cells_of_their_label_that_the_model_never_saw(known, label):
    model, held_out = known
    generated, real = model.generate(600, labels=label), held_out[held_out.obs["branch"] == label]
    assert np.corrcoef(log_mean(generated), log_mean(real))[0, 1] > 0.98
    # another label is clearly farther
    own = np.abs(log_mean(generated) - log_mean(real)).mean()
    for other in set(LABELS) - {label}:
        assert np.abs(log_mean(generated) - log_mean(held_out[held_out.obs["branch"] == other])).mean() > 1.5 * own
    # as deep, and as unequally so
    quantiles = [
        np.quantile(np.asarray(cells.X.sum(axis=1)), [0.1, 0.25, 0.5, 0.75, 0.9]) for cells in (generated, real)
    ]
    np.testing.assert_allclose(*quantiles, rtol=0.2)
    # as dispersed: a Poisson would have 1
    ours, theirs = generated.X.toarray(), real.X.toarray()
    often = theirs.mean(axis=0) > 0.5
    fano, real_fano = (x[:, often].var(axis=0) / x[:, often].mean(axis=0) for x in (ours, theirs))
    assert np.median(fano) == pytest.approx(np.median(real_fano), rel=0.35)
    assert np.corrcoef(np.log(fano), np.log(real_fano))[0, 1] > 0.85
    # and the encoder finds them to be what they are, nearly as often as it does real cells
    right, real_right = ((nearest_label(model, cells) == label).mean() for cells in (generated, real))
    assert right > max(0.6, real_right - 0.2)


def test_batches_differ_as_they_do_in_real_cells(known):
    model, held_out = known
    batches = ("batch_1", "batch_2")
    generated = [log_mean(model.generate(600, batch=batch)) for batch in batches]
    real = [log_mean(held_out[held_out.obs["batch"] == batch]) for batch in batches]
    assert np.corrcoef(generated[1] - generated[0], real[1] - real[0])[0, 1] > 0.7


def test_without_spread_cells_are_more_alike(known):
    model, _ = known
    drawn, middle = (model.generate(1200, spread=spread).obsm["latent"] for spread in (True, False))
    assert (drawn.var(axis=0) > middle.var(axis=0)).all()
    assert set(map(tuple, middle)) <= set(map(tuple, model.reference_latents()))
    # the aggregate of the posteriors is what the prior is for
    np.testing.assert_allclose(drawn.std(axis=0), 1, atol=0.25)


# -- which reference cells ---------------------------------------------------------------------------------------------


def test_each_cell_has_the_conditions_of_its_reference_cell(full_model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cells = full_model.generate(50, labels="trunk", batch=["batch_1", "batch_3"], categorical={"sex": "male"})
    assert cells.shape == (50, 40)
    assert sp.isspmatrix_csr(cells.X) or isinstance(cells.X, sp.csr_array)
    assert cells.X.dtype == np.int32
    assert list(cells.obs_names[:2]) == ["generated_0", "generated_1"]
    rows = cells.obs["reference_cell"].to_numpy()
    there = table_of(full_model).iloc[rows]
    for column in ("batch", "sex", "chem", "cell_type"):
        assert (cells.obs[column].astype(str).to_numpy() == there[column].to_numpy()).all()
    for column in ("age", "pct"):
        np.testing.assert_allclose(cells.obs[column], there[column], rtol=1e-6)
    assert set(cells.obs["cell_type"]) == {"trunk"}
    assert set(cells.obs["sex"]) == {"male"}
    assert set(cells.obs["batch"]) == {"batch_1", "batch_3"}
    reference = full_model.reference()
    np.testing.assert_array_equal(cells.obs["library_size"], reference.library_r[rows])
    np.testing.assert_allclose(cells.obs["support"], full_model.support(reference.latent_rk[rows]), atol=1e-4)
    made = json.loads(cells.uns["scdecode"]["generated"])
    assert made["labels"] == "trunk"
    assert made["batch"] == ["batch_1", "batch_3"]
    assert made["categorical['sex']"] == "male"
    wanted = table_of(full_model)
    wanted = wanted[(wanted.cell_type == "trunk") & (wanted.sex == "male") & wanted.batch.isin(["batch_1", "batch_3"])]
    assert made["n_reference_cells"] == len(wanted)


def test_reference_cells_are_used_evenly(full_model):
    n = len(full_model.reference_latents())
    once = full_model.generate(n).obs["reference_cell"]
    assert sorted(once) == list(range(n))
    assert not once.is_monotonic_increasing
    often = full_model.generate(3 * n - 7).obs["reference_cell"].value_counts()
    assert often.min() >= 2
    assert often.max() == 3
    assert full_model.generate(5).obs["reference_cell"].is_unique


def test_several_names_are_drawn_in_proportion_to_their_cells(full_model):
    counts = table_of(full_model)["cell_type"].value_counts()[["trunk", "branch_1"]]
    drawn = full_model.generate(1000, labels=["trunk", "branch_1"]).obs["cell_type"].value_counts()
    np.testing.assert_allclose(drawn[counts.index], 1000 * counts / counts.sum(), atol=10)


def test_a_mapping_gives_the_proportions(full_model):
    cells = full_model.generate(400, labels={"trunk": 3, "branch_1": 1}, batch={"batch_1": 0.5, "batch_2": 0.5})
    drawn = pd.crosstab(cells.obs["cell_type"].astype(str), cells.obs["batch"].astype(str))
    np.testing.assert_allclose(drawn.loc[["trunk", "branch_1"]], [[150, 150], [50, 50]], atol=1)
    without = full_model.generate(10, labels={"trunk": 1, "branch_1": 0})
    assert set(without.obs["cell_type"]) == {"trunk"}


def test_one_cell_is_of_any_label_by_chance(full_model):
    drawn = [full_model.generate(1, labels={"trunk": 9, "branch_1": 1}, seed=seed) for seed in range(40)]
    labels = [cell.obs["cell_type"].iloc[0] for cell in drawn]
    assert 1 <= labels.count("branch_1") <= 12


def test_a_model_without_labels_is_asked_for_batches(model):
    cells = model.generate(20, batch="batch_2")
    assert set(cells.obs["batch"]) == {"batch_2"}
    assert "cell_type" not in cells.obs
    with pytest.raises(ConditionError, match="set up without labels; leave it out, or train a model"):
        model.generate(20, labels="trunk")


def test_the_unlabelled_category_of_scanvi_is_a_label():
    adata = make_adata(120)
    adata.obs["known"] = adata.obs["cell_type"].astype(str).where(np.arange(120) % 2 == 0, "unknown")
    sd.SCANVI.setup_anndata(adata, labels_key="known", unlabeled_category="unknown", batch_key="batch")
    model = sd.SCANVI(adata, n_latent=3, n_hidden=8)
    model.train(1, progress=False, device="cpu")
    assert set(model.generate(10, labels="unknown").obs["known"]) == {"unknown"}
    assert set(model.generate(10, labels="trunk").obs["known"]) == {"trunk"}


# -- what they are decoded with ----------------------------------------------------------------------------------------


def test_as_if_of_another_condition(full_model):
    asked = {"labels": "trunk", "batch": "batch_1"}
    cells = full_model.generate(30, **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)  # some of them never occurred together
        other = full_model.generate(
            30, **asked, decode_as={"batch": "batch_2", "categorical": {"sex": "male"}, "continuous": {"age": 33}}
        )
    np.testing.assert_array_equal(other.obsm["latent"], cells.obsm["latent"])
    for column in ("reference_cell", "library_size", "chem", "pct", "cell_type"):
        assert (other.obs[column].to_numpy() == cells.obs[column].to_numpy()).all()
    assert set(other.obs["batch"]) == {"batch_2"}
    assert set(other.obs["sex"]) == {"male"}
    assert set(other.obs["age"]) == {33}
    assert (other.X != cells.X).nnz > 0
    assert json.loads(other.uns["scdecode"]["generated"])["decode_as"] == ["batch", "categorical", "continuous"]


@pytest.mark.parametrize(("given", "sizes"), [(700, [700] * 4), ([500, 600, 700, 800], [500, 600, 700, 800])])
def test_library_sizes_may_be_given(full_model, given, sizes):
    cells = full_model.generate(4, library_size=given)
    assert cells.obs["library_size"].tolist() == sizes
    own = full_model.generate(4)
    np.testing.assert_array_equal(own.obsm["latent"], cells.obsm["latent"])
    median = full_model.generate(4, library_size="observed").obs["library_size"]
    np.testing.assert_allclose(median, full_model.schema.median_library)


def test_a_model_with_a_size_factor_takes_that_of_the_reference_cells():
    adata = make_adata(120)
    model = make_model(adata, setup={"size_factor_key": "size_factor"}, epochs=1)
    cells = model.generate(20)
    np.testing.assert_array_equal(cells.obs["library_size"], model.reference().library_r[cells.obs["reference_cell"]])
    assert 0.3 < np.median(cells.obs["library_size"]) < 3
    assert "batch" not in cells.obs


def test_labels_decide_the_dispersion_where_it_is_theirs():
    model = make_model(make_adata(150), setup=EVERYTHING, epochs=1, dispersion="gene-label")
    cells = model.generate(25, labels=["trunk", "branch_2"])
    expected = table_of(model)["cell_type"].to_numpy()[cells.obs["reference_cell"]]
    assert (cells.obs["cell_type"].astype(str).to_numpy() == expected).all()
    again = sd.decode_arguments(cells)
    assert (again["labels"].astype(str) == expected).all()


def test_latents_of_a_logistic_normal_sum_to_one():
    model = make_model(make_adata(150), epochs=2, latent_distribution="ln")
    reference = model.reference()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cells = model.generate(4000)
    latent_nk, row_n = cells.obsm["latent"], cells.obs["reference_cell"].to_numpy()
    np.testing.assert_allclose(latent_nk.sum(axis=1), 1, atol=1e-5)
    # draws of the softmax, whose mean is what the model keeps, and not the softmax of the mean
    np.testing.assert_allclose(latent_nk.mean(axis=0), reference.latent_rk[row_n].mean(axis=0), atol=0.02)
    middle = model.generate(10, spread=False)
    np.testing.assert_array_equal(middle.obsm["latent"], reference.latent_rk[middle.obs["reference_cell"]])


def test_genes(full_model):
    names = [full_model.schema.genes[i] for i in (7, 2)]
    cells = full_model.generate(10, genes=names)
    assert list(cells.var_names) == names
    with pytest.raises(InputError, match="genes: 'gene' is not one of"):
        full_model.generate(10, genes=["gene"])


# -- the same again ----------------------------------------------------------------------------------------------------


def test_seeds_and_the_global_generators(full_model):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    first, again, other = (full_model.generate(20, labels="trunk", seed=seed) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)
    assert states() == before


@pytest.mark.filterwarnings("ignore::scdecode.errors.SupportWarning")
def test_decode_draws_the_counts_again(full_model):
    cells = full_model.generate(300, labels="trunk", seed=5)
    again = full_model.decode(**sd.decode_arguments(cells))
    assert same(cells, again)
    assert "reference_cell" not in again.obs


@pytest.mark.parametrize("ending", [".h5ad", ".zarr"])
def test_streamed(full_model, tmp_path, ending):
    done = []
    cells = full_model.generate(3000, labels="trunk")
    streamed = full_model.generate(3000, labels="trunk", out=tmp_path / f"cells{ending}", on_tile=done.append)
    assert sum(done) == 3000
    whole = streamed.to_memory()
    assert same(whole, cells)
    pd.testing.assert_frame_equal(whole.obs, cells.obs, check_index_type=False)
    assert whole.uns["scdecode"]["generated"] == cells.uns["scdecode"]["generated"]


def test_a_saved_model_generates_the_same(full_model, tmp_path):
    full_model.save(tmp_path / "model")
    assert same(sd.load(tmp_path / "model").generate(20, labels="trunk"), full_model.generate(20, labels="trunk"))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n: 0 came, a whole number of at least 1"),
        ({"n": 2.5}, "n: got 2.5"),
        ({"n": True}, "n: got True"),
        ({"n": 5, "seed": -1}, "seed: -1 came"),
        ({"n": 5, "labels": "trnk"}, "labels: 'trnk' is not one of the 3 training levels.*did you mean 'trunk'"),
        ({"n": 5, "batch": ["batch_1", "batch_9"]}, "batch: 'batch_9' is not one of"),
        ({"n": 5, "batch": []}, "batch: a list of 0 came"),
        ({"n": 5, "categorical": {"sx": "male"}}, "did you mean 'sex'"),
        ({"n": 5, "categorical": "male"}, "a mapping of covariate names"),
        ({"n": 5, "labels": {"trunk": -1}}, "labels: the weights"),
        ({"n": 5, "labels": np.array(["trunk"] * 5)}, r"an array of shape \(5,\) came where names.*value_counts"),
        ({"n": 5, "categorical": {"sex": pd.Series(["male"] * 5)}}, r"an array of shape \(5,\)"),
        ({"n": 5, "library_size": -3}, "library_size: .*positive finite"),
        ({"n": 5, "library_size": [1000, 2000]}, r"library_size: an array of shape \(2,\)"),
        ({"n": 5, "spread": 0.5}, r"spread: got 0.5 \(float\), expected True or False"),
        ({"n": 5, "decode_as": "batch_2"}, r"decode_as: got 'batch_2' \(str\), expected a mapping"),
        ({"n": 5, "decode_as": {"bach": "batch_2"}}, "decode_as: 'bach' is not.*did you mean 'batch'"),
        ({"n": 5, "decode_as": {"batch": "batch_7"}}, "batch: 'batch_7' is not one of"),
        ({"n": 5, "decode_as": {"categorical": "male"}}, "categorical: 'male' came, a mapping"),
        ({"n": 5, "out": "cells.csv"}, "out: 'cells.csv' came"),
    ],
)
def test_refused(full_model, arguments, message):
    with pytest.raises(InputError, match=message):
        full_model.generate(**arguments)


@pytest.fixture(scope="module")
def patchy():
    """A model of cells in which batch_3 has no trunk, and batch_2 has few of them."""
    adata = make_adata()
    of_trunk, batch = adata.obs["cell_type"] == "trunk", adata.obs["batch"]
    few = of_trunk & (batch == "batch_2")
    few &= few.cumsum() > 3
    return make_model(
        adata[~(of_trunk & (batch == "batch_3")) & ~few].copy(),
        setup={"batch_key": "batch", "labels_key": "cell_type"},
        train={"train_size": 1.0},
        epochs=1,
    )


def test_a_combination_without_cells_lists_those_that_have(patchy):
    with pytest.raises(ConditionError) as caught:
        patchy.generate(5, labels="trunk", batch="batch_3")
    message = str(caught.value)
    counts = table_of(patchy).value_counts()
    n = len(patchy.reference_latents())
    assert message.startswith(f"labels='trunk', batch='batch_3': none of the {n} (of {n} cells of the model)")
    assert f"labels='trunk', batch='batch_1' ({counts['batch_1', 'trunk']} cells)" in message
    assert "labels='trunk', batch='batch_2' (3 cells)" in message
    # those that have one of the two come first, the most frequent of them at the front
    near = [(counts[b, c], message.index(f"labels='{c}', batch='{b}' (")) for b, c in counts.index if near_to(b, c)]
    assert [place for _, place in sorted(near, reverse=True)] == sorted(place for _, place in near)
    far = [message.index(f"labels='{c}', batch='{b}' (") for b, c in counts.index if not near_to(b, c)]
    assert min(far) > max(place for _, place in near)
    assert "decode_as" in message


def near_to(batch, label):
    return batch == "batch_3" or label == "trunk"


def test_lists_and_mappings_of_which_some_have_no_cells(patchy):
    # of two lists some pairs may be missing
    cells = patchy.generate(200, labels=["trunk", "branch_1"], batch=["batch_1", "batch_3"])
    pairs = set(zip(cells.obs["cell_type"], cells.obs["batch"], strict=True))
    assert pairs == {("trunk", "batch_1"), ("branch_1", "batch_1"), ("branch_1", "batch_3")}
    # but a name that no cell could have is not passed over
    with pytest.raises(ConditionError, match="labels='trunk', batch='batch_3': none of the"):
        patchy.generate(5, labels="trunk", batch=["batch_1", "batch_3"])
    # nor is a share that no cell can have
    with pytest.raises(ConditionError, match="labels='trunk', batch='batch_3': none of the"):
        patchy.generate(5, labels={"trunk": 1, "branch_1": 1}, batch={"batch_1": 1, "batch_3": 1})


def test_models_that_cannot():
    adata = make_adata(60)
    with pytest.raises(NotTrainedError):
        make_model(adata, epochs=0).generate(5)
    model = make_model(adata, epochs=1, gene_likelihood="normal")
    with pytest.raises(InputError, match="generate: a model with gene_likelihood='normal' came"):
        model.generate(5)


def forgetful(model, folder, latents=None):
    """The model as from files that keep no reference cells, or latent points of them alone."""
    model.save(folder)
    opened = sd.load(folder)
    opened._reference = opened._support = None
    if latents is not None:
        opened.attach_reference(latents)
    return opened


def test_a_model_without_reference_cells_says_how_to_attach_them(full_model, tmp_path):
    with pytest.raises(InputError, match=r"model\.attach_reference"):
        forgetful(full_model, tmp_path / "model").generate(5)


def test_cells_that_are_attached_are_drawn_from(full_model, tmp_path):
    opened = forgetful(full_model, tmp_path / "model", make_adata())
    cells = opened.generate(20, labels="branch_2", batch="batch_3")
    assert set(cells.obs["cell_type"]) == {"branch_2"}
    assert len(opened.reference_latents()) == 300


def test_latent_points_alone_say_all_that_is_missing(full_model, tmp_path):
    opened = forgetful(full_model, tmp_path / "model", full_model.reference_latents())
    with pytest.raises(InputError) as caught:
        opened.generate(5, labels="trunk")
    for missing in ("labels='trunk'", "spread=False", "library_size=", "their batch", "['chem']", "['pct']"):
        assert missing in str(caught.value)
    everything = {"batch": "batch_1", "categorical": {"sex": "male", "chem": "v1"}, "continuous": {"age": 3, "pct": 0}}
    cells = opened.generate(5, spread=False, library_size=500, decode_as=everything)
    assert set(cells.obs["batch"]) == {"batch_1"}
    assert "cell_type" not in cells.obs


def test_latent_points_alone_suffice_where_nothing_else_is_needed(tmp_path):
    model = make_model(make_adata(80), setup={}, epochs=1)
    opened = forgetful(model, tmp_path / "model", model.reference_latents())
    cells = opened.generate(30, spread=False, library_size=500)
    assert cells.shape == (30, 40)
    np.testing.assert_array_equal(cells.obsm["latent"], model.reference_latents()[cells.obs["reference_cell"]])
