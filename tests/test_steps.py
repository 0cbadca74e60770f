"""Training by hand takes the steps of autograd, whatever the model, the minibatches and the number of threads."""

import signal
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode import steps, training
from scdecode.kernels import adam_loops, heads, sparse_layer
from scdecode.kernels.adam import KernelAdam
from scdecode.kernels.likelihood import Likelihood
from scdecode.kernels.threads import n_threads
from scdecode.step_layers import StepHidden

SIZE_FACTOR = {"batch_key": "batch", "size_factor_key": "size_factor"}
ONE_OF_ALL = {"batch_key": "same", "labels_key": "same"}

BY_HAND = {
    "nb": {},
    "zinb": {"gene_likelihood": "zinb"},
    "poisson": {"gene_likelihood": "poisson"},
    "no conditions": {"setup": {}, "gene_likelihood": "zinb"},
    "nb, softplus": {"setup": SIZE_FACTOR},
    "zinb, softplus": {"setup": SIZE_FACTOR, "gene_likelihood": "zinb"},
    "poisson, softplus": {"setup": SIZE_FACTOR, "gene_likelihood": "poisson"},
    "by batch": {"dispersion": "gene-batch", "gene_likelihood": "zinb"},
    "by batch, of which there is one": {"dispersion": "gene-batch", "setup": ONE_OF_ALL},
    "by label": {"dispersion": "gene-label", "setup": EVERYTHING},
    "by label, of which there is one": {"dispersion": "gene-label", "setup": ONE_OF_ALL},
    "poisson with an idle dispersion by batch": {"dispersion": "gene-batch", "gene_likelihood": "poisson"},
    "two layers": {"n_layers": 2},
    "three layers": {"n_layers": 3, "gene_likelihood": "zinb", "setup": EVERYTHING},
    "two layers, told at the first": {"n_layers": 2, "deeply_inject_covariates": False, "setup": EVERYTHING},
    "several covariates": {"setup": EVERYTHING, "gene_likelihood": "zinb"},
    "continuous covariates alone": {"setup": {"continuous_covariate_keys": ["age", "pct"]}},
    "no dropout": {"dropout_rate": 0.0},
    "much dropout": {"dropout_rate": 0.3, "n_layers": 2},
    "widths that are odd": {"n_hidden": 13, "n_latent": 3, "n_layers": 2, "setup": EVERYTHING},
}
BY_AUTOGRAD = {
    "layer norm beside": {"use_layer_norm": "both"},
    "layer norm of the encoder": {"use_layer_norm": "encoder", "n_layers": 2, "setup": EVERYTHING},
    "batch norm of the encoder": {"use_batch_norm": "encoder", "dropout_rate": 0.3},
    "no norm": {"use_batch_norm": "none"},
    "by cell": {"dispersion": "gene-cell"},
    "logistic normal": {"latent_distribution": "ln"},
    "learned library": {"use_observed_lib_size": False, "n_layers": 2},
    "embedding": {"batch_representation": "embedding", "setup": EVERYTHING, "gene_likelihood": "zinb"},
}
NOT_SPARSE = {"normal": {"gene_likelihood": "normal"}, "covariates encoded": {"encode_covariates": True}}


@contextmanager
def threads_of_torch(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def some_adata():
    adata = make_adata()
    adata.obs["same"] = "one"
    return adata


def trained(monkeypatch, way, options, *, epochs=3, train=None, make=make_model):
    """The history, the weights and the means of the gradients, after training ``way``: by hand, autograd or plain."""
    optimizers, made = [], []
    with monkeypatch.context() as patch:
        if way == "plain":
            patch.setattr(training, "usable", lambda: False)
        if way == "autograd":
            patch.setattr(training, "can_step", lambda network: False)
        optimizer, step = training._optimizer, training.KernelStep
        patch.setattr(training, "_optimizer", lambda *a, **k: optimizers.append(optimizer(*a, **k)) or optimizers[-1])
        patch.setattr(training, "KernelStep", lambda *a: made.append(step(*a)) or made[-1])
        model = make(some_adata(), epochs=epochs, train={"batch_size": 128} | (train or {}), **options)
    assert len(made) == (way == "by hand")
    assert isinstance(optimizers[0], KernelAdam) == (way != "plain")
    weights = {name: value.clone() for name, value in model.vae.state_dict().items()}
    moments = {
        name: optimizers[0].state[weight]["exp_avg"].clone()
        for name, weight in model.vae.named_parameters()
        if optimizers[0].state[weight]
    }
    return model.history_table, weights, moments


def assert_same(one, other):
    (table, weights, moments), (other_table, other_weights, other_moments) = one, other
    columns = [name for name in table if name != "seconds"]
    np.testing.assert_allclose(table[columns].to_numpy(float), other_table[columns].to_numpy(float), rtol=1e-5)
    assert weights.keys() == other_weights.keys() and moments.keys() == other_moments.keys()
    for name, value in weights.items():
        assert value.is_contiguous(), name
        # batch normalisation takes the bias before it away again: its gradient is rounding, and so is what it learns
        loose = 1e-3 if name.endswith(".linear.bias") else 1e-5
        torch.testing.assert_close(value, other_weights[name], rtol=1e-5, atol=loose, msg=lambda m, n=name: f"{n}: {m}")
    for name, value in moments.items():
        if not name.endswith(".linear.bias"):
            # of a bias before batch normalisation most is taken away again, and the rounding of what was there is left
            beside = [name, name.replace(".bias", ".weight")]
            scale = max(float(other_moments[one].abs().max()) for one in beside if one in other_moments)
            torch.testing.assert_close(
                value, other_moments[name], rtol=1e-4, atol=3e-5 * scale, msg=lambda m, n=name: f"mean of {n}: {m}"
            )


@pytest.mark.parametrize("options", BY_HAND.values(), ids=BY_HAND)
def test_by_hand_as_by_autograd_and_in_plain_torch(monkeypatch, options):
    by_hand = trained(monkeypatch, "by hand", options)
    assert_same(by_hand, trained(monkeypatch, "autograd", options))
    assert_same(by_hand, trained(monkeypatch, "plain", options))


@pytest.mark.parametrize("options", BY_AUTOGRAD.values(), ids=BY_AUTOGRAD)
def test_others_go_by_autograd_over_the_kernels(monkeypatch, options):
    # trained() looks that no step by hand was made, though none is forbidden here
    network = make_model(some_adata(), epochs=0, **options).vae
    assert not steps.can_step(network)
    assert_same(trained(monkeypatch, "autograd", options), trained(monkeypatch, "plain", options))


MINIBATCHES = {
    "an odd last one": {"batch_size": 64},
    "many small ones": {"batch_size": 7},
    "one alone": {"batch_size": 512},
    "one alone, just as large": {"batch_size": 270},
    "a lone cell joins the only one": {"batch_size": 269},
    "a lone cell joins the last of many": {"batch_size": 23, "train_size": 1.0},
    "weights that shrink": {"weight_decay": 0.05, "lr": 5e-3},
    "a KL that grows": {"n_epochs_kl_warmup": 3},
}


@pytest.mark.parametrize("train", MINIBATCHES.values(), ids=MINIBATCHES)
def test_any_minibatches(monkeypatch, train):
    options = {"gene_likelihood": "zinb", "setup": EVERYTHING, "dispersion": "gene-label"}
    by_hand = trained(monkeypatch, "by hand", options, train=train, epochs=2)
    assert_same(by_hand, trained(monkeypatch, "autograd", options, train=train, epochs=2))
    assert_same(by_hand, trained(monkeypatch, "plain", options, train=train, epochs=2))


def test_can_step_says_which():
    for options in BY_HAND.values():
        assert steps.can_step(make_model(some_adata(), epochs=0, **options).vae), options
    for options in (BY_AUTOGRAD | NOT_SPARSE).values():
        assert not steps.can_step(make_model(some_adata(), epochs=0, **options).vae), options
    adata = make_adata()
    sd.LinearSCVI.setup_anndata(adata, batch_key="batch")
    assert not steps.can_step(sd.LinearSCVI(adata, n_latent=4).vae)
    assert not steps.can_step(torch.nn.Linear(2, 2))


def make_linear(adata, *, epochs, train, **options):
    sd.LinearSCVI.setup_anndata(adata, batch_key="batch")
    model = sd.LinearSCVI(adata, n_latent=4, n_hidden=16, **options)
    model.train(epochs, device="cpu", progress=False, **train)
    return model


def make_scanvi(adata, *, epochs, train, **options):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).where(np.arange(len(adata)) % 3 > 0, "unknown")
    sd.SCANVI.setup_anndata(adata, labels_key="cell_type", unlabeled_category="unknown", batch_key="batch")
    model = sd.SCANVI(adata, n_latent=4, n_hidden=16, **options)
    model.train(epochs, device="cpu", progress=False, **train)
    return model


@pytest.mark.parametrize("make", [make_linear, make_scanvi])
@pytest.mark.parametrize("kind", ["nb", "zinb"])
def test_other_models_go_by_autograd(monkeypatch, make, kind):
    options = {"gene_likelihood": kind}
    assert_same(trained(monkeypatch, "autograd", options, make=make), trained(monkeypatch, "plain", options, make=make))


def few_at_once(monkeypatch):
    """So that even a small model has several pieces of everything for threads to share."""
    monkeypatch.setattr(heads, "_WIDE", 16)
    monkeypatch.setattr(heads, "_PIECE", 7)
    monkeypatch.setattr(heads, "_GENES", 4)
    monkeypatch.setattr(steps, "_GENES", 5)
    monkeypatch.setattr(sparse_layer, "_ROWS", 1)
    monkeypatch.setattr(sparse_layer, "_GENES", 3)
    monkeypatch.setattr(adam_loops, "BLOCK", 64)


THREADED = {
    "by hand": {"gene_likelihood": "zinb", "n_layers": 2, "setup": EVERYTHING, "dispersion": "gene-batch"},
    "autograd": {"gene_likelihood": "zinb", "n_layers": 2, "use_layer_norm": "decoder", "setup": EVERYTHING},
}


@pytest.mark.parametrize("small", [False, True], ids=["whole", "in small pieces"])
@pytest.mark.parametrize("way", THREADED)
def test_the_number_of_threads_changes_nothing(monkeypatch, way, small):
    seen = set()
    of_weight, change, blocks = heads.HeadsGradient.of_weight, KernelAdam.change, Likelihood.blocks
    with monkeypatch.context() as patch:
        look = lambda method: lambda *a: seen.add(threading.get_ident()) or method(*a)  # noqa: E731
        patch.setattr(heads.HeadsGradient, "of_weight", look(of_weight))
        patch.setattr(KernelAdam, "change", look(change))
        patch.setattr(Likelihood, "blocks", look(blocks))
        if small:
            few_at_once(patch)
        found = []
        for n in (1, 2, 3):
            with threads_of_torch(n):
                before = torch.get_rng_state()
                found.append(trained(monkeypatch, way, THREADED[way]))
                assert torch.get_num_threads() == n
                assert n_threads() == 1
                assert torch.equal(torch.get_rng_state(), before)
            if n == 1:
                assert len(seen) == 1
    assert len(seen) > 1  # work was shared
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
    assert_same(found[0], trained(monkeypatch, "plain", THREADED[way]))


def test_more_threads_train_as_plain_torch_where_genes_are_shared(monkeypatch):
    options = {"gene_likelihood": "nb", "setup": SIZE_FACTOR}
    plain = trained(monkeypatch, "plain", options, train={"batch_size": 37})
    few_at_once(monkeypatch)
    with threads_of_torch(3):
        assert_same(trained(monkeypatch, "by hand", options, train={"batch_size": 37}), plain)


class Broken(Exception):
    """What the tests break training with."""


def breaking(method, error, at):
    """The method, but that its call number ``at`` raises."""
    calls, counting = [0], threading.Lock()

    def broken(*arguments, **options):
        with counting:
            calls[0] += 1
            now = calls[0] == at
        if now:
            raise error
        return method(*arguments, **options)

    return broken


interrupted = pytest.mark.filterwarnings("ignore:train. interrupted:scdecode.errors.TrainingWarning")

PLACES = {
    "back through a small layer": (StepHidden, "backward", 14),
    "a large weight's change": (KernelAdam, "change", 25),
    "a product that a thread takes": (heads.HeadsGradient, "of_weight", 14),
    "a minibatch ahead": (steps._Epoch, "minibatch", 8),
    "random numbers ahead": (steps.KernelStep, "_draw", 8),
}


@interrupted
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
def test_what_breaks_off_leaves_all_as_it_was(monkeypatch, place, error, n):
    """Two epochs of three steps and a part of the third epoch, at most."""
    owner, name, at = place
    model, rows, weights = make_model(make_adata(), epochs=0), [], []

    def keep(done, total, row):
        rows.append(row)
        weights.append({key: value.clone() for key, value in model.vae.state_dict().items()})

    monkeypatch.setattr(owner, name, breaking(getattr(owner, name), error(), at))
    with threads_of_torch(n):
        before = torch.get_rng_state()
        try:
            model.train(5, device="cpu", progress=False, batch_size=90, on_epoch=keep)
            assert error is KeyboardInterrupt
        except Broken:
            assert error is Broken
        assert torch.get_num_threads() == n
        assert n_threads() == 1
        assert torch.equal(torch.get_rng_state(), before)
    assert 1 <= len(rows) < 5
    for key, value in model.vae.state_dict().items():
        assert torch.equal(value, weights[-1][key]), key
        assert value.is_contiguous()
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.vae.parameters())


@pytest.mark.usefixtures("interrupts")
@interrupted
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
def test_an_interrupt_while_another_thread_computes(monkeypatch):
    """The caller may be waiting for that thread, which then has to end before training does."""
    model, rows, inside, met = make_model(make_adata(), epochs=0), [], [], []
    blocks = Likelihood.blocks

    def slow(*arguments):
        first = len(rows) == 2 and threading.current_thread() is not threading.main_thread() and not met
        if first:
            met.append(True)
            inside.append(True)
            threading.Event().wait(0.05)  # until the caller waits
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            threading.Event().wait(0.3)
        blocks(*arguments)
        if first:
            inside.pop()

    monkeypatch.setattr(Likelihood, "blocks", slow)
    with threads_of_torch(2):
        before = torch.get_rng_state()
        model.train(50, device="cpu", progress=False, on_epoch=lambda *_: rows.append(1))
        assert not inside
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), before)
    assert met and len(rows) < 50 and len(model.history_table) == len(rows)


@pytest.mark.parametrize("first", ["by hand", "autograd", "plain"])
@pytest.mark.parametrize("then", ["by hand", "autograd", "plain"])
def test_a_checkpoint_goes_on_in_any_way(monkeypatch, tmp_path, first, then):
    options = {"gene_likelihood": "zinb", "n_layers": 2, "setup": EVERYTHING}
    path = {"checkpoint": tmp_path / "c"}
    trained(monkeypatch, first, options, epochs=2, train=path)
    resumed = trained(monkeypatch, then, options, epochs=4, train=path)
    assert len(resumed[0]) == 4
    assert_same(resumed, trained(monkeypatch, "plain", options, epochs=4))


@pytest.mark.parametrize("options", [{}, {"use_layer_norm": "both"}], ids=["by hand", "by autograd"])
def test_weights_that_are_moved_between_epochs_are_still_trained(options):
    """Decoding on another device within ``on_epoch`` gives each weight another memory."""

    def move(done, total, row):
        for weight in moved.vae.parameters():
            weight.data = weight.data.clone()

    still, moved = (make_model(make_adata(), epochs=0, **options) for _ in range(2))
    still.train(4, device="cpu", progress=False)
    moved.train(4, device="cpu", progress=False, on_epoch=move)
    for name, value in still.vae.state_dict().items():
        torch.testing.assert_close(moved.vae.state_dict()[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_the_default_type_of_numbers_does_not_matter():
    expected = make_model(make_adata(), epochs=2).vae.state_dict()
    model = make_model(make_adata(), epochs=0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model.train(2, device="cpu", progress=False)
    finally:
        torch.set_default_dtype(before)
    assert all(value.dtype in (torch.float32, torch.int64) for value in model.vae.state_dict().values())
    assert expected.keys() == model.vae.state_dict().keys()
