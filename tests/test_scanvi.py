"""``SCANVI``: labels and classes, training, predictions, and that it does all that ``SCVI`` does."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from small_models import EVERYTHING, make_adata

import scdecode as sd
from scdecode import training
from scdecode._utils.levels import Category
from scdecode.errors import ConditionError, ConfigError, InputError, NotTrainedError, TrainingError
from scdecode.minibatches import labelled_order, split_labelled

pytestmark = pytest.mark.filterwarnings("ignore::scdecode.errors.SupportWarning")

LABELLED = {"labels_key": "cell_type", "unlabeled_category": "unknown"}
EVERY_COLUMN = {**EVERYTHING, **LABELLED}


def hide(adata, share=0.5, seed=0):
    """Take away the labels of some cells; which they are."""
    hidden_n = np.random.default_rng(seed).random(adata.n_obs) < share
    names = adata.obs["cell_type"].astype(str).to_numpy()
    adata.obs["cell_type"] = np.where(hidden_n, "unknown", names)
    return hidden_n


def make_scanvi(adata=None, *, epochs=3, setup=None, train=None, **options):
    if adata is None:
        adata = make_adata()
        hide(adata)
    sd.SCANVI.setup_anndata(adata, **({"batch_key": "batch"} | LABELLED if setup is None else setup))
    model = sd.SCANVI(adata, **{"n_latent": 4, "n_hidden": 16, "gene_likelihood": "nb"} | options)
    if epochs:
        model.train(epochs, device="cpu", progress=False, **(train or {}))
    return model


def make_types(n_cells=450, n_genes=30, n_types=3, seed=0):
    """Cells of types with programs of their own, half of them without a label; and their true types."""
    rng = np.random.default_rng(seed)
    programs = rng.gamma(0.7, size=(n_types, n_genes)) + 0.05
    kind_n = rng.integers(0, n_types, n_cells)
    rate = programs[kind_n] * rng.gamma(4, 1 / 4, (n_cells, n_genes))
    counts = rng.poisson(rate / rate.sum(1, keepdims=True) * rng.lognormal(4.5, 0.4, (n_cells, 1)))
    counts[:, 0] += 1
    truth = np.array(["T", "B", "NK", "mono"])[kind_n]
    obs = pd.DataFrame({"cell_type": truth}, index=[f"cell_{i}" for i in range(n_cells)])
    adata = AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    return adata, truth, hide(adata)


@pytest.fixture(scope="module")
def learned():
    """A model that learned types: the model, the cells, their true types, and which have no label. Read only."""
    adata, truth, hidden_n = make_types()
    model = make_scanvi(adata, setup=LABELLED, epochs=30, n_hidden=32)
    return model, adata, truth, hidden_n


def weights(model):
    parts = {"vae": model.vae, "classification": model.classification}
    return {f"{part}.{name}": t.clone() for part, m in parts.items() for name, t in m.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- predictions -------------------------------------------------------------------------------------------------------


def test_cells_without_a_label_get_the_right_one(learned):
    model, _, truth, hidden_n = learned
    found = model.predict()
    assert (found == truth)[hidden_n].mean() > 0.9  # by chance it would be a third
    assert (found == truth)[~hidden_n].mean() > 0.9
    assert set(found) == {"B", "NK", "T"}


def test_new_cells_get_the_right_label(learned):
    model, *_ = learned
    others, *_ = make_types(seed=0)
    shuffled = others[::-1, np.random.default_rng(1).permutation(others.n_vars)].copy()
    del shuffled.obs["cell_type"]  # it is not needed
    np.testing.assert_array_equal(model.predict(shuffled), model.predict()[::-1])
    np.testing.assert_array_equal(model.predict(shuffled, indices=[3, 1]), model.predict()[::-1][[3, 1]])


def test_conditions_are_needed_where_the_encoder_sees_them(adata):
    hide(adata)
    blind, seeing = make_scanvi(adata, epochs=1), make_scanvi(adata, epochs=1, encode_covariates=True)
    others = adata.copy()
    del others.obs["batch"]
    np.testing.assert_array_equal(blind.predict(others), blind.predict())
    with pytest.raises(InputError, match="batch_key: 'batch' is not one of"):
        seeing.predict(others)


def test_probabilities(learned):
    model, adata, *_ = learned
    soft = model.predict(soft=True)
    assert soft.shape == (adata.n_obs, 3)
    assert list(soft.columns) == ["B", "NK", "T"]
    assert list(soft.index) == list(adata.obs_names)
    assert (soft.to_numpy() >= 0).all()
    np.testing.assert_allclose(soft.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(soft.idxmax(axis=1).to_numpy(), model.predict())
    chosen = model.predict(soft=True, indices=np.array([7, 2]))
    assert list(chosen.index) == ["cell_7", "cell_2"]
    np.testing.assert_allclose(chosen.to_numpy(), soft.to_numpy()[[7, 2]], atol=1e-6)
    np.testing.assert_allclose(model.predict(soft=True, batch_size=17).to_numpy(), soft.to_numpy(), atol=1e-6)


def test_predictions_at_draws(learned):
    model, *_ = learned
    one, again, other = (model.predict(soft=True, use_posterior_mean=False, seed=seed) for seed in (0, 0, 1))
    assert one.equals(again)
    assert not one.equals(other)
    assert not one.equals(model.predict(soft=True))


def test_no_cells_and_no_weights(learned, adata):
    model, *_ = learned
    assert model.predict(indices=[]).shape == (0,)
    assert model.predict(indices=[], soft=True).shape == (0, 3)
    hide(adata)
    with pytest.raises(NotTrainedError):
        make_scanvi(adata, epochs=0).predict()


def test_labels_that_are_numbers_come_back_as_numbers():
    adata, truth, hidden_n = make_types(120)
    codes = pd.factorize(truth, sort=True)[0]
    adata.obs["cell_type"] = np.where(hidden_n, -1, codes)
    model = make_scanvi(adata, setup={"labels_key": "cell_type", "unlabeled_category": -1}, epochs=1)
    assert model.schema.labels.names == ("2", "0", "1", "-1")  # the unlabelled and the last change places
    assert model.predict().dtype.kind == "i"
    assert set(model.predict()) <= {0, 1, 2}
    assert list(model.predict(soft=True).columns) == [2, 0, 1]


# -- labels ------------------------------------------------------------------------------------------------------------


def test_the_unlabelled_category_is_last_and_no_class():
    adata, *_ = make_types(90)
    adata.obs["cell_type"] = adata.obs["cell_type"].str.replace("unknown", "Missing")
    model = make_scanvi(adata, setup={"labels_key": "cell_type", "unlabeled_category": "Missing"}, epochs=0)
    assert model.schema.labels.names == ("B", "T", "NK", "Missing")
    assert (model.schema.n_labels, model.schema.n_classes) == (4, 3)
    assert model.classification.n_classes == 3
    assert adata.uns["scdecode_setup"]["unlabeled_category"] == "Missing"


def test_there_need_be_no_cell_without_a_label():
    adata, truth, _ = make_types(150)
    adata.obs["cell_type"] = truth
    model = make_scanvi(adata, setup=LABELLED, epochs=2)
    assert model.schema.labels.names == ("B", "NK", "T", "unknown")
    assert model.classification.n_classes == 3
    assert set(model.predict()) <= {"B", "NK", "T"}


def test_a_category_put_last():
    assert Category("x", ("a", "b", "c")).with_last("a").names == ("c", "b", "a")
    assert Category("x", ("a", "b")).with_last("b").names == ("a", "b")
    assert Category("x", ("a", "b")).with_last("z").names == ("a", "b", "z")
    assert Category("x", ("1", "2"), "int").with_last("-1") == Category("x", ("1", "2", "-1"), "int")
    assert Category("x", ("1", "2"), "int").with_last("none") == Category("x", ("1", "2", "none"), "str")


def test_no_label_at_all(adata):
    adata.obs["cell_type"] = "unknown"
    with pytest.raises(ConditionError, match=r"no cell has a label, only \['unknown'\]; label some cells"):
        make_scanvi(adata)


def test_too_few_labels(adata):
    adata.obs["cell_type"] = ["T", *["unknown"] * 299]
    with pytest.raises(ConfigError, match="of 1 labelled cells leaves 1 to train on, at least 2"):
        make_scanvi(adata)


def test_one_label_is_enough(adata):
    adata.obs["cell_type"] = [*["T"] * 9, *["unknown"] * 291]
    assert set(make_scanvi(adata, epochs=1).predict()) == {"T"}
    with pytest.raises(ConfigError, match="n_samples_per_label: 1 came, but there is one class alone"):
        make_scanvi(adata, epochs=1, train={"n_samples_per_label": 1})


def test_a_setup_that_is_not_for_it(adata):
    sd.SCVI.setup_anndata(adata, labels_key="cell_type")
    with pytest.raises(InputError, match=r"it was not set up for SCANVI; call SCANVI.setup_anndata"):
        sd.SCANVI(adata)
    with pytest.raises(InputError, match="unlabeled_category: None came, and SCANVI needs one"):
        sd.SCANVI.setup_anndata(adata, "cell_type", None)
    with pytest.raises(InputError, match="labels_key: 'cell_typ' is not one of"):
        sd.SCANVI.setup_anndata(adata, "cell_typ", "unknown")
    with pytest.raises(InputError, match="use_minified=None came"):
        sd.SCANVI.setup_anndata(adata, "cell_type", "unknown", use_minified=None)


def test_another_model_takes_the_labels_as_they_are(adata):
    hide(adata)
    sd.SCANVI.setup_anndata(adata, **LABELLED)
    model = sd.SCVI(adata, dispersion="gene-label", n_hidden=8)
    assert model.schema.labels.names[-1] == "unknown"
    assert model.vae.log_theta.shape[0] == 4


# -- training ----------------------------------------------------------------------------------------------------------


def test_the_history(learned):
    model, *_ = learned
    table = model.history_table
    for of in ("train", "validation"):
        assert np.isfinite(table[f"{of}_classification_loss"]).all()
        assert table[f"{of}_accuracy"].between(0, 1).all()
        assert table[f"{of}_accuracy"].iloc[-1] > 0.85
        total = table[f"reconstruction_loss_{of}"] + table[f"kl_local_{of}"]
        np.testing.assert_allclose(table[f"elbo_{of}"], total, rtol=1e-12)
    assert table["train_classification_loss"].iloc[-1] < 0.5 * table["train_classification_loss"].iloc[0]
    loss = table["reconstruction_loss_train"] + table["kl_weight"] * table["kl_local_train"]
    np.testing.assert_allclose(table["train_loss"], loss + 50 * table["train_classification_loss"], rtol=0.02)
    loss = table["reconstruction_loss_validation"] + table["kl_weight"] * table["kl_local_validation"]
    np.testing.assert_allclose(table["validation_loss"], loss + 50 * table["validation_classification_loss"], rtol=1e-6)


def test_the_same_seed_gives_the_same_weights():
    one, again, other = make_scanvi(), make_scanvi(), make_scanvi(seed=1)
    assert same(weights(one), weights(again))
    assert not same(weights(one), weights(other))
    assert not any(p.requires_grad for part in (one.vae, one.classification) for p in part.parameters())


def test_the_ratio_of_the_classification(adata):
    """Without it the classifier sees no label; with it, labels move the encoder too."""
    hide(adata)
    without = make_scanvi(adata, train={"plan_kwargs": {"classification_ratio": 0.0}})
    much = make_scanvi(adata, train={"classification_ratio": 500.0})
    assert without.train_config.classification_ratio == 0.0
    assert much.train_config.classification_ratio == 500.0
    last = [model.history_table["train_classification_loss"].iloc[-1] for model in (without, much)]
    assert last[1] < last[0]


@pytest.fixture
def gathered(monkeypatch):
    """The positions of the cells of each minibatch, as they are gathered."""
    seen, gather = [], training.gather

    def look(cells, rows, device, *sparse):
        seen.append(np.asarray(rows))
        return gather(cells, rows, device, *sparse)

    monkeypatch.setattr(training, "gather", look)
    return seen


@pytest.mark.parametrize("n_samples_per_label", [None, 5])
def test_every_step_sees_labelled_cells_in_turn(gathered, n_samples_per_label):
    adata, truth, hidden_n = make_types(300)
    options = {"train_size": 1.0, "batch_size": 40, "n_samples_per_label": n_samples_per_label}
    make_scanvi(adata, setup=LABELLED, epochs=2, train=options)
    steps = len(gathered) // 4
    n_labelled = int((~hidden_n).sum()) if n_samples_per_label is None else 15
    chosen = []
    for epoch in range(2):
        seen = gathered[epoch * 2 * steps :][: 2 * steps]
        every, labelled = seen[0::2], seen[1::2]
        assert sorted(np.concatenate(every)) == list(range(300))
        assert not hidden_n[np.concatenate(labelled)].any()
        n_own = -(-n_labelled // 40)
        once = np.concatenate(labelled[:n_own])
        assert len(set(once)) == len(once) == n_labelled
        if n_samples_per_label is not None:
            assert all((truth[once] == name).sum() == 5 for name in ("B", "NK", "T"))
        for step in range(n_own, steps):
            np.testing.assert_array_equal(labelled[step], labelled[step - n_own])
        chosen.append(set(once))
    assert (chosen[0] == chosen[1]) is (n_samples_per_label is None)


def test_the_split_keeps_the_share_of_labelled_cells():
    is_labelled = np.arange(100) % 4 == 0
    split = split_labelled(is_labelled, sd.TrainConfig(train_size=0.6, validation_size=0.2))
    assert [is_labelled[part].sum() for part in (split.train, split.validation, split.test)] == [15, 5, 5]
    assert [len(part) for part in (split.train, split.validation, split.test)] == [60, 20, 20]
    assert sorted(np.concatenate([split.train, split.validation, split.test])) == list(range(100))


def test_the_order_of_labelled_cells():
    class_n = np.array([0, 1, 0, 0, 2, 1])
    rows = np.array([0, 2, 3, 4, 5])
    assert sorted(labelled_order(class_n, rows, None, np.random.default_rng(0))) == rows.tolist()
    some = labelled_order(class_n, rows, 2, np.random.default_rng(0))
    assert np.bincount(class_n[some]).tolist() == [2, 1, 1]
    assert set(some) <= set(rows)


def test_a_broken_off_training_goes_on_as_if_it_had_not_been(tmp_path):
    whole = make_scanvi(epochs=4, train={"n_samples_per_label": 20})
    path, options = tmp_path / "state", {"n_samples_per_label": 20, "device": "cpu", "progress": False}
    make_scanvi(epochs=0).train(2, checkpoint=path, **options)
    resumed = make_scanvi(epochs=0)
    resumed.train(4, checkpoint=path, **options)
    assert same(weights(whole), weights(resumed))
    without_time = [model.history_table.drop(columns="seconds") for model in (whole, resumed)]
    assert without_time[0].equals(without_time[1])
    with pytest.raises(ConfigError, match="classifier linear: False there, True here"):
        make_scanvi(epochs=0, linear_classifier=True).train(4, checkpoint=path, **options)
    with pytest.raises(ConfigError, match=r"n_samples_per_label: 20 there, None here"):
        make_scanvi(epochs=0).train(4, checkpoint=path, device="cpu", progress=False)


def test_early_stopping():
    model = make_scanvi(epochs=0)
    options = {"early_stopping": True, "early_stopping_patience": 1, "early_stopping_min_delta": 1e9}
    model.train(50, device="cpu", progress=False, **options)
    assert len(model.history_table) == 2


def test_a_loss_that_is_no_number(adata):
    hide(adata)
    model = make_scanvi(adata, epochs=0)
    with torch.no_grad():
        model.classification.classifier.logits.bias[0] = float("nan")
    with pytest.raises(TrainingError, match="no longer a number in epoch 1, step 1"):
        model.train(1, device="cpu", progress=False)


def test_options_of_training_that_are_of_another_model(model):
    adata = make_adata()
    sd.SCVI.setup_anndata(adata)
    with pytest.raises(ConfigError, match="classification_ratio: 25 came, but only SCANVI learns from labelled cells"):
        sd.SCVI(adata, n_hidden=4).train(1, plan_kwargs={"classification_ratio": 25})
    with pytest.raises(InputError, match="adversarial_classifier: True came, which is of TOTALANVI"):
        make_scanvi(epochs=0).train(1, adversarial_classifier=True)


# -- from a model without labels ---------------------------------------------------------------------------------------


def make_base(adata, *, epochs=2, **setup):
    sd.SCVI.setup_anndata(adata, **({"batch_key": "batch", "labels_key": "cell_type"} | setup))
    model = sd.SCVI(adata, n_latent=4, n_hidden=16, gene_likelihood="nb")
    if epochs:
        model.train(epochs, device="cpu", progress=False)
    return model


def test_it_begins_with_the_weights_of_an_scvi(adata):
    hide(adata)
    base = make_base(adata)
    model = sd.SCANVI.from_scvi_model(base, "unknown")
    assert type(model) is sd.SCANVI
    assert not model.is_trained
    assert model.config == base.config
    assert same(model.vae.state_dict(), base.vae.state_dict())
    before = {name: value.clone() for name, value in base.vae.state_dict().items()}
    model.train(progress=False, device="cpu")
    assert len(model.history_table) == 10  # few, as it has been trained
    assert same(before, base.vae.state_dict())
    assert not same(before, model.vae.state_dict())
    assert set(model.predict()) <= {"branch_1", "branch_2", "trunk"}


def test_it_begins_with_an_scvi_from_files_or_of_other_cells(adata, tmp_path):
    base = make_base(adata, labels_key=None)
    base.save(tmp_path / "model")
    loaded = sd.load(tmp_path / "model")
    others = make_adata(120, seed=3)
    hide(others)
    with pytest.raises(InputError, match="adata: none came, and the model was opened from files"):
        sd.SCANVI.from_scvi_model(loaded, "unknown", "cell_type")
    with pytest.raises(InputError, match="labels_key: none came, and the model was set up without one"):
        sd.SCANVI.from_scvi_model(loaded, "unknown", adata=others)
    model = sd.SCANVI.from_scvi_model(loaded, "unknown", "cell_type", others[:, ::-1].copy(), linear_classifier=True)
    assert model.schema.genes == base.schema.genes
    assert model.schema.n_cells == 120
    assert model.classification.config.linear
    model.train(2, progress=False, device="cpu")
    assert model.predict().shape == (120,)
    del others.obs["batch"]
    with pytest.raises(InputError, match="batch_key: 'batch' is not one of"):
        sd.SCANVI.from_scvi_model(base, "unknown", "cell_type", others)


def test_options_beside_a_model(adata):
    base = make_base(adata)
    assert sd.SCANVI.from_scvi_model(base, "unknown", n_latent=4).config.n_latent == 4
    with pytest.raises(ConfigError, match="n_latent: 5 came, but the model has 4 and its weights are kept"):
        sd.SCANVI.from_scvi_model(base, "unknown", n_latent=5)
    with pytest.raises(ConfigError, match="there is no option 'latents'"):
        sd.SCANVI.from_scvi_model(base, "unknown", latents=5)
    with pytest.raises(NotTrainedError):
        sd.SCANVI.from_scvi_model(make_base(adata, epochs=0), "unknown")
    with pytest.raises(InputError, match="scvi_model: got 'model'"):
        sd.SCANVI.from_scvi_model("model", "unknown")


def test_a_linear_model_is_no_beginning(adata):
    sd.LinearSCVI.setup_anndata(adata, labels_key="cell_type")
    linear = sd.LinearSCVI(adata, n_hidden=8, n_latent=2)
    linear.train(1, progress=False, device="cpu")
    with pytest.raises(ConfigError, match="decoder: 'linear' came"):
        sd.SCANVI.from_scvi_model(linear, "unknown")


# -- options, files ----------------------------------------------------------------------------------------------------

GRID = [
    {"linear_classifier": True, "gene_likelihood": "zinb"},
    {"classifier_parameters": {"n_layers": 2, "n_hidden": 5}, "dispersion": "gene-batch", "n_layers": 2},
    {"use_observed_lib_size": False, "gene_likelihood": "poisson", "dispersion": "gene-cell"},
    {"setup": EVERY_COLUMN, "encode_covariates": True, "deeply_inject_covariates": False},
    {"setup": EVERY_COLUMN | {"size_factor_key": "size_factor"}, "batch_representation": "embedding"},
    {"setup": LABELLED, "latent_distribution": "ln", "use_batch_norm": "none", "use_layer_norm": "both"},
]


@pytest.mark.parametrize("options", GRID, ids=str)
def test_every_option_trains_saves_loads_predicts_and_decodes(options, tmp_path):
    adata = make_adata(150)
    hide(adata)
    model = make_scanvi(adata, epochs=1, train={"batch_size": 40}, **options)
    assert np.isfinite(model.history_table.to_numpy()).all()
    model.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "model.json").read_text())["class"] == "SCANVI"
    loaded = sd.load(tmp_path / "model")
    assert type(loaded) is sd.SCANVI
    assert same(weights(model), weights(loaded))
    assert loaded.schema.columns.unlabeled_category == "unknown"
    assert loaded.classification.config == model.classification.config
    assert loaded.predict(adata, soft=True).equals(model.predict(adata, soft=True))
    z_nk = model.get_latent_representation(adata, mc_samples=10)
    for request in ({}, {"quantity": "mean"}, {"quantity": "scale"}, {"quantity": "counts", "seed": 1}):
        decoded, again = (np.asarray(one.decode(z_nk[:5], **request).to_df()) for one in (model, loaded))
        assert decoded.shape == (5, 40)
        np.testing.assert_array_equal(decoded, again)
    assert len(model.support(z_nk[:5])) == 5
    assert model.posterior().mean.shape == (150, 4)
    again = sd.SCANVI.load(tmp_path / "model", adata)
    again.train(1, progress=False, device="cpu")
    assert again.predict().shape == (150,)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"dispersion": "gene-label"}, ConfigError, "dispersion: 'gene-label' came, but the labels of some cells"),
        ({"classifier_parameters": {"n_layer": 2}}, ConfigError, "no option 'n_layer'; did you mean 'n_layers'"),
        ({"classifier_parameters": {"linear": True}}, ConfigError, "pass linear_classifier=True"),
        ({"linear_classifier": True, "classifier_parameters": {"n_layers": 2}}, ConfigError, "no hidden layer"),
        ({"y_prior": torch.ones(1, 3)}, InputError, "SCANVI: y_prior="),
        ({"use_labels_groups": True}, InputError, "SCANVI: use_labels_groups=True came"),
        ({"latent": 3}, ConfigError, "there is no option 'latent'"),
    ],
)
def test_options_that_are_wrong(adata, options, kind, message):
    hide(adata)
    with pytest.raises(kind, match=message):
        make_scanvi(adata, **options)


def test_what_it_is(learned):
    model, *_ = learned
    assert model.info()["class"] == "SCANVI"
    assert model.info()["columns"]["unlabeled_category"] == "unknown"
    assert repr(model).startswith("SCANVI: 450 cells x 30 genes")
