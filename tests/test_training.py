"""Training: seeds, order, history, early stopping, Ctrl-C and losses that are no numbers; every option of the model."""

import random
from typing import get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode import ModelConfig, TrainConfig, training
from scdecode.cells import read_training_cells
from scdecode.errors import ConfigError, CountsError, InputError, NotTrainedError, TrainingError, TrainingWarning
from scdecode.kernels.rows import Gatherer
from scdecode.minibatches import split_cells
from scdecode.training import fit

PARTS = ("elbo_{}", "reconstruction_loss_{}", "kl_local_{}", "{}_loss")
LOSSES = [part.format(of) for of in ("train", "validation") for part in PARTS]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.vae.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained(epochs=2, seed=0, **train):
    return make_model(make_adata(), epochs=epochs, train=train, seed=seed)


def train(model, epochs, **options):
    model.train(epochs, device="cpu", progress=False, **options)


@pytest.fixture
def untrained(adata):
    return make_model(adata, epochs=0)


@pytest.fixture
def batches(monkeypatch):
    """The positions of the cells of each minibatch, training and validation, as they are gathered."""
    seen, gather = [], Gatherer.gather

    def look(self, rows):
        seen.append(rows)
        return gather(self, rows)

    monkeypatch.setattr(Gatherer, "gather", look)
    return seen


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_to_the_last_bit():
    one, other = trained(), trained()
    assert same(weights(one), weights(other))
    assert one.history_table[LOSSES].equals(other.history_table[LOSSES])
    np.testing.assert_array_equal(one.reference_latents(), other.reference_latents())


def test_another_seed_gives_other_weights():
    one = trained()
    assert not same(weights(one), weights(trained(seed=1)))
    with_another_order = make_model(make_adata(), epochs=2, train={"seed": 1})
    assert not same(weights(one), weights(with_another_order))


def test_the_random_numbers_of_the_program_are_left_alone(adata, tmp_path):
    states = [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002
    model = make_model(adata, setup=EVERYTHING, gene_likelihood="zinb", latent_distribution="ln", epochs=1)
    z_nk = model.get_latent_representation(adata, mc_samples=5000)
    model.get_latent_representation(adata, give_mean=False)
    model.get_latent_representation(adata, n_samples=2)
    model.decode(z_nk[:3], quantity="counts")
    model.save(tmp_path / "model")
    sd.load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]


def test_the_random_numbers_of_the_program_change_nothing():
    one = trained()
    torch.manual_seed(12345)
    np.random.seed(12345)  # noqa: NPY002
    assert same(weights(one), weights(trained()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu():
    states = [torch.get_rng_state(), torch.cuda.get_rng_state()]
    one, other = (make_model(make_adata(), epochs=0) for _ in range(2))
    for model in (one, other):
        model.train(2, device="cuda", progress=False)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state(), states[1])
    assert all(tensor.device.type == "cpu" for tensor in one.vae.state_dict().values())
    for name, tensor in one.vae.state_dict().items():
        torch.testing.assert_close(tensor, other.vae.state_dict()[name])
    np.testing.assert_allclose(one.history_table[LOSSES], trained(2).history_table[LOSSES], rtol=0.02)


# -- what is trained on ------------------------------------------------------------------------------------------------


def test_each_epoch_sees_each_training_cell_once(untrained, batches):
    config = TrainConfig(max_epochs=2, batch_size=67)  # 270 = 4 * 67 + 2
    train(untrained, 2, batch_size=67)
    split = split_cells(300, config)
    assert [len(rows) for rows in batches] == [67, 67, 67, 67, 2, 30] * 2
    first, second = (np.concatenate(batches[i : i + 5]) for i in (0, 6))
    for order in (first, second):
        assert sorted(order.tolist()) == sorted(split.train.tolist())
    assert first.tolist() != second.tolist()
    assert set(batches[5].tolist()) == set(split.validation.tolist())


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(269, [270]), (90, [90, 90, 90]), (38, [38] * 7 + [4]), (300, [270])]
)
def test_sizes_of_the_minibatches(untrained, batches, batch_size, sizes):
    train(untrained, 1, batch_size=batch_size, validation_size=0.0)
    assert [len(rows) for rows in batches] == sizes


@pytest.mark.parametrize("n_cells", [2, 3, 129, 130])
def test_no_minibatch_of_one_cell(n_cells, batches):
    model = make_model(make_adata(n_cells), epochs=1, train={"train_size": 1.0})
    assert min(len(rows) for rows in batches) >= 2
    assert np.isfinite(model.history_table.to_numpy()).all()


def test_training_lowers_the_loss():
    model = trained(15, lr=1e-2, n_epochs_kl_warmup=None)
    elbo = model.history_table["elbo_train"]
    assert elbo.iloc[-1] < elbo.iloc[0] - 20
    assert model.history_table["elbo_validation"].iloc[-1] < model.history_table["elbo_validation"].iloc[0] - 20


def test_counts_that_changed_since_the_model_was_made(untrained, adata):
    np.log1p(adata.X.data, out=adata.X.data)
    with pytest.raises(CountsError, match="the counts of 300 of 300 cells changed after the model was made"):
        train(untrained, 1)


def test_the_network_is_left_as_it_was_found():
    model = trained()
    assert not model.vae.training
    assert not any(module.training for module in model.vae.modules())
    for parameter in model.vae.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert parameter.device.type == "cpu"


# -- history -----------------------------------------------------------------------------------------------------------


def test_history():
    history = trained(3).history_table
    assert set(history.columns) == {*LOSSES, "kl_weight", "seconds"}
    assert history.index.tolist() == [0, 1, 2]
    assert history.index.name == "epoch"
    assert all(dtype == np.float64 for dtype in history.dtypes)
    assert np.isfinite(history.to_numpy()).all()
    assert (history["seconds"] > 0).all()
    for of in ("train", "validation"):
        total = history[f"reconstruction_loss_{of}"] + history[f"kl_local_{of}"]
        np.testing.assert_allclose(history[f"elbo_{of}"], total, rtol=1e-12)
        assert (history[f"kl_local_{of}"] > 0).all()
        loss = history[f"reconstruction_loss_{of}"] + history["kl_weight"] * history[f"kl_local_{of}"]
        np.testing.assert_allclose(history[f"{of}_loss"], loss, rtol=1e-6)


def test_history_without_validation_cells():
    assert set(trained(train_size=1.0).history_table.columns) == {*LOSSES[:4], "kl_weight", "seconds"}


def test_history_with_a_validation_now_and_then():
    history = trained(5, check_val_every_n_epoch=2).history_table
    assert history["elbo_validation"].notna().tolist() == [False, True, False, True, False]
    assert history["elbo_train"].notna().all()


def test_the_elbo_of_the_history_is_that_of_the_network(untrained):
    """The validation ELBO, averaged over the noise, against the network's own of the same cells."""
    train(untrained, 1, lr=1e-12)
    split = split_cells(300, TrainConfig())
    with torch.no_grad():
        elbo = untrained.vae.elbo(training.gather(untrained._cells, split.validation, torch.device("cpu")))
    mean = float((elbo.reconstruction + elbo.kl_z + elbo.kl_l).mean())
    assert untrained.history_table["elbo_validation"].iloc[0] == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [(400, [0, 1 / 400, 2 / 400, 3 / 400]), (2, [0, 0.5, 1, 1]), (None, [1] * 4), (0, [1] * 4), (1, [0, 1, 1, 1])],
)
def test_kl_warmup(warmup, expected):
    assert trained(4, n_epochs_kl_warmup=warmup).history_table["kl_weight"].tolist() == expected


def test_the_kl_weight_is_used():
    free, bound = (trained(8, lr=1e-2, n_epochs_kl_warmup=warmup) for warmup in (10**9, None))
    assert free.history_table["kl_local_train"].iloc[-1] > 2 * bound.history_table["kl_local_train"].iloc[-1]


def test_the_default_number_of_epochs(untrained):
    totals = []

    def stop(done, total, row):
        totals.append(total)
        raise KeyboardInterrupt

    with pytest.warns(TrainingWarning, match="interrupted"):
        train(untrained, None, on_epoch=stop)
    assert totals == [400]


def test_on_epoch_is_told_of_each(untrained):
    told = []
    train(untrained, 3, on_epoch=lambda done, total, row: told.append((done, total, row)))
    assert [(done, total) for done, total, _ in told] == [(1, 3), (2, 3), (3, 3)]
    pd.testing.assert_frame_equal(pd.DataFrame([row for *_, row in told]), untrained.history_table, check_names=False)


def test_training_again_goes_on():
    model = trained(2)
    after_two, first = weights(model), model.history_table
    train(model, 3)
    assert len(model.history_table) == 5
    assert model.history_table.index.tolist() == [0, 1, 2, 3, 4]
    pd.testing.assert_frame_equal(model.history_table.iloc[:2], first)
    assert not same(weights(model), after_two)
    assert model.history_table["elbo_train"].iloc[2] < first["elbo_train"].iloc[0]  # it did not begin anew
    assert not same(weights(model), weights(trained(3)))
    z_nk = model.get_latent_representation(indices=np.sort(split_cells(300, TrainConfig()).train))
    np.testing.assert_array_equal(model.reference_latents(), z_nk)  # of the weights it has now


# -- early stopping ----------------------------------------------------------------------------------------------------

NEVER_BETTER = {"early_stopping": True, "early_stopping_min_delta": 1e9}
"""Only the first validation counts as an improvement."""


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"early_stopping_patience": 2}, 3),
        ({"early_stopping_patience": 1}, 2),
        ({"early_stopping_patience": 2, "early_stopping_warmup_epochs": 4}, 7),
        ({"early_stopping_patience": 2, "check_val_every_n_epoch": 2}, 6),
        ({"early_stopping_patience": 30}, 12),
        ({"early_stopping_patience": 2, "early_stopping": False}, 12),
    ],
)
def test_early_stopping(options, epochs):
    model = trained(12, **NEVER_BETTER | options)
    assert len(model.history_table) == epochs
    assert model.info()["ending"] == ("early stopping" if epochs < 12 else "finished")
    assert model.is_trained


def test_no_early_stopping_while_the_loss_falls():
    model = trained(12, lr=1e-2, n_epochs_kl_warmup=None, early_stopping=True, early_stopping_patience=3)
    assert len(model.history_table) == 12
    best = model.history_table["elbo_validation"].cummin()
    assert (best.diff().iloc[1:] < 0).any()


def test_an_improvement_below_the_minimum_is_none():
    elbo = trained(6, lr=1e-2, n_epochs_kl_warmup=None).history_table["elbo_validation"]
    largest = float(-elbo.diff().min())
    options = {"lr": 1e-2, "n_epochs_kl_warmup": None, "early_stopping": True, "early_stopping_patience": 1}
    assert len(trained(6, early_stopping_min_delta=2 * largest, **options).history_table) == 2


def test_early_stopping_without_validation_cells(untrained):
    for options in ({"train_size": 1.0}, {"validation_size": 0.0}):
        with pytest.raises(ConfigError, match="early_stopping: there are no validation cells"):
            train(untrained, 1, early_stopping=True, **options)
    assert not untrained.is_trained


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


def interrupt_after(n):
    def on_epoch(done, total, row):
        if done == n:
            raise KeyboardInterrupt

    return on_epoch


def test_ctrl_c_between_two_epochs_keeps_the_model(untrained):
    with pytest.warns(TrainingWarning, match="train: interrupted; the model has the weights of epoch 2") as caught:
        train(untrained, 5, on_epoch=interrupt_after(2))
    assert [one.filename for one in caught] == [__file__]
    assert same(weights(untrained), weights(trained(2)))
    assert len(untrained.history_table) == 2
    assert untrained.is_trained
    assert untrained.info()["ending"] == "interrupted"


def failing_after(monkeypatch, n, error):
    """Let the ``n``-th minibatch fail."""
    gather, calls = Gatherer.gather, []

    def fail(self, rows):
        calls.append(rows)
        if len(calls) == n:
            raise error
        return gather(self, rows)

    monkeypatch.setattr(Gatherer, "gather", fail)


@pytest.mark.parametrize("n", [9, 10, 12])  # 3 + 1 minibatches an epoch: in the third, at its end, in its validation
def test_ctrl_c_within_an_epoch_keeps_the_last_whole_one(untrained, monkeypatch, n):
    failing_after(monkeypatch, n, KeyboardInterrupt)
    with pytest.warns(TrainingWarning, match="the model has the weights of epoch 2"):
        train(untrained, 5)
    monkeypatch.undo()
    assert same(weights(untrained), weights(trained(2)))
    assert len(untrained.history_table) == 2


@pytest.mark.parametrize("n", [1, 3, 4])
def test_ctrl_c_before_the_first_epoch_is_through(untrained, monkeypatch, n):
    before = weights(untrained)
    failing_after(monkeypatch, n, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(untrained, 5)
    assert same(weights(untrained), before)
    assert not untrained.is_trained
    assert not untrained.vae.training
    with pytest.raises(NotTrainedError):
        untrained.get_latent_representation()
    monkeypatch.undo()
    train(untrained, 2)  # and it can still be trained
    assert same(weights(untrained), weights(trained(2)))


def test_ctrl_c_leaves_the_random_numbers_alone(untrained, monkeypatch):
    state = torch.get_rng_state()
    failing_after(monkeypatch, 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(untrained, 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_of_on_epoch_passes_through(untrained):
    def broken(done, total, row):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        train(untrained, 3, on_epoch=broken)
    assert same(weights(untrained), weights(trained(1)))


# -- losses that are no numbers ----------------------------------------------------------------------------------------


def fitted(adata, setup=None, **options):
    """The network and the cells of an untrained model, for :func:`fit`."""
    model = make_model(adata, epochs=0, setup=setup, **options)
    return model.vae, model._cells


def test_a_learning_rate_that_is_too_high(untrained):
    with pytest.raises(TrainingError, match=r"epoch 1, step [123] of 3\. .* the learning rate 1e\+30 is high"):
        train(untrained, 5, lr=1e30)
    assert not untrained.is_trained
    assert same(weights(untrained), weights(make_model(make_adata(), epochs=0)))


def poison_after(vae, n, value=float("nan")):
    """Spoil a weight once ``n`` epochs are through."""

    def on_epoch(done, total, row):
        if done == n:
            with torch.no_grad():
                vae.decoder.scale.bias[3] = value

    return on_epoch


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_later_epoch_gives_the_last_whole_one_back(adata, value):
    vae, cells = fitted(adata)
    message = r"in epoch 3, step 1 of 3\. .*no cause is plain; the largest count .* is \d+.* last whole epoch \(2\)"
    with pytest.raises(TrainingError, match=message):
        fit(vae, cells, TrainConfig(max_epochs=5), on_epoch=poison_after(vae, 2, value))
    expected, _ = fitted(make_adata())
    fit(expected, cells, TrainConfig(max_epochs=2))
    assert same(vae.state_dict(), expected.state_dict())


def test_a_cell_without_counts_is_named_as_the_cause(adata):
    vae, cells = fitted(adata)
    rows = cells.counts.toarray()
    rows[split_cells(300, TrainConfig()).train[5]] = 0
    sd.SCVI.setup_anndata(adata, batch_key="batch")
    adata.X = rows
    with pytest.raises(TrainingError, match=r"epoch 1, step .* cause: the minibatch has a cell without counts"):
        fit(vae, read_training_cells(adata)[1], TrainConfig(max_epochs=1))


def test_normalised_data_are_named_as_the_cause(adata):
    vae, _ = fitted(adata)
    adata.X = adata.X * 0.5
    with torch.no_grad():
        vae.decoder.scale.bias[:] = float("nan")
    with pytest.raises(TrainingError, match="the values are not whole numbers: train on raw counts, not on norm"):
        fit(vae, read_training_cells(adata)[1], TrainConfig(max_epochs=1))


def test_fractions_are_no_cause_where_they_are_allowed(adata):
    adata.X = adata.X * 0.5
    vae, cells = fitted(adata, gene_likelihood="normal")
    with torch.no_grad():
        vae.decoder.scale.bias[:] = float("nan")
    with pytest.raises(TrainingError, match="cause: no cause is plain"):
        fit(vae, cells, TrainConfig(max_epochs=1))


def test_a_failure_tells_how_far_training_came(adata):
    vae, cells = fitted(adata)
    told = []

    with pytest.raises(TrainingError, match="epoch 3"):
        fit(vae, cells, TrainConfig(max_epochs=5), on_epoch=poison_after(vae, 2), on_failure=told.append)
    assert [len(history.table) for history in told] == [2]
    assert told[0].ending == "failed"
    with pytest.raises(TrainingError, match="epoch 1"):  # nothing came of it, and there is nothing to tell
        fit(vae, cells, TrainConfig(max_epochs=5, lr=1e30), on_failure=lambda history: pytest.fail("called"))


# -- options -----------------------------------------------------------------------------------------------------------


def test_options_that_are_wrong(untrained):
    with pytest.raises(ConfigError, match=r"train: there is no option 'learning_rate'"):
        untrained.train(1, learning_rate=0.1)
    with pytest.raises(ConfigError, match="max_epochs: 0 came"):
        untrained.train(0)
    with pytest.raises(ConfigError, match="device: got 'tpu'"):
        untrained.train(1, device="tpu")
    with pytest.raises(ConfigError, match=r"train_size: 0.001 of 300 cells leaves 1 to train on"):
        untrained.train(1, train_size=0.001)


def test_a_model_from_files_has_no_cells(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(InputError, match="opened from files and has no cells"):
        sd.load(tmp_path / "model").train(1)


FACTOR = {"batch_key": "batch", "size_factor_key": "size_factor"}
GRID = [
    {"gene_likelihood": "nb"},
    {"gene_likelihood": "zinb"},
    {"gene_likelihood": "poisson"},
    {"gene_likelihood": "normal"},
    {"dispersion": "gene-batch"},
    {"dispersion": "gene-label", "setup": EVERYTHING},
    {"dispersion": "gene-cell", "gene_likelihood": "zinb"},
    {"dispersion": "gene-cell", "gene_likelihood": "normal"},
    {"dispersion": "gene-batch", "setup": {}},
    {"latent_distribution": "ln", "gene_likelihood": "zinb"},
    {"use_observed_lib_size": False},
    {"use_observed_lib_size": False, "setup": EVERYTHING, "encode_covariates": True},
    {"setup": FACTOR},
    {"setup": FACTOR, "use_observed_lib_size": False, "gene_likelihood": "zinb"},
    {"setup": EVERYTHING},
    {"setup": EVERYTHING, "encode_covariates": True, "n_layers": 2},
    {"setup": EVERYTHING, "encode_covariates": True, "deeply_inject_covariates": False, "n_layers": 2},
    {"setup": EVERYTHING, "batch_representation": "embedding"},
    {"setup": EVERYTHING, "batch_representation": "embedding", "encode_covariates": True, "batch_embedding_dim": 2},
    {"setup": {}, "batch_representation": "embedding"},
    {"setup": {"continuous_covariate_keys": ["age"]}, "encode_covariates": True},
    {"use_batch_norm": "encoder", "use_layer_norm": "decoder", "n_layers": 2},
    {"use_batch_norm": "decoder", "use_layer_norm": "encoder"},
    {"use_batch_norm": "none", "use_layer_norm": "both"},
    {"use_batch_norm": "none", "use_layer_norm": "none", "dropout_rate": 0.0},
    {"n_latent": 1, "n_hidden": 1, "n_layers": 3},
    {"setup": EVERYTHING | FACTOR, "dispersion": "gene-label", "latent_distribution": "ln", "encode_covariates": True},
]


def named(options):
    return "-".join(str(value) for key, value in options.items() if key != "setup")


@pytest.mark.parametrize("options", GRID, ids=named)
@pytest.mark.filterwarnings("ignore::scdecode.errors.SupportWarning")
def test_every_option_trains_saves_loads_encodes_and_decodes(options, tmp_path):
    adata = make_adata(120)
    model = make_model(adata, epochs=1, train={"batch_size": 40}, **options)
    assert np.isfinite(model.history_table.to_numpy()).all()
    model.save(tmp_path / "model")
    loaded = sd.load(tmp_path / "model")
    assert same(weights(model), weights(loaded))

    z_nk = model.get_latent_representation(adata, mc_samples=10)
    assert z_nk.shape == (120, model.config.n_latent)
    assert z_nk.dtype == np.float32
    assert np.isfinite(z_nk).all()
    np.testing.assert_array_equal(loaded.get_latent_representation(adata, mc_samples=10), z_nk)
    np.testing.assert_array_equal(model.get_latent_representation(mc_samples=10), z_nk)

    requests = [{}, {"quantity": "mean"}, {"quantity": "scale"}]
    requests += [{"batch": "batch_2"}] if model.schema.batch is not None else []
    requests += [{"quantity": "counts", "seed": 1}] if model.config.has_counts else []
    for request in requests:
        decoded, again = (np.asarray(one.decode(z_nk[:5], **request).to_df()) for one in (model, loaded))
        assert decoded.shape == (5, 40)
        assert np.isfinite(decoded).all()
        np.testing.assert_array_equal(decoded, again)


@pytest.mark.parametrize("name", ["dispersion", "gene_likelihood", "latent_distribution", "batch_representation"])
def test_the_grid_has_every_choice(name):
    used = {options.get(name, getattr(ModelConfig(), name)) for options in GRID}
    assert used == set(get_args(get_type_hints(ModelConfig)[name]))
