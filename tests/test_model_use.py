"""Models in several threads: trainings follow one another, and no thread sees a model that is being changed."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode._utils.isolation import isolated
from scdecode._utils.model_use import changing, reading
from scdecode.errors import TrainingError
from scdecode.training import digest_of

WAIT = 60  # seconds, for what takes a moment


@pytest.fixture(scope="module")
def adata():
    return make_adata(120, 20)


KINDS = {
    "kernels": {"gene_likelihood": "nb"},
    "autograd": {"gene_likelihood": "zinb", "encode_covariates": True},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=list(KINDS))
def test_trainings_in_threads_are_those_of_one(adata, options, caplog):
    models = [make_model(adata, setup=EVERYTHING, epochs=0, **options) for _ in range(5)]
    models[0].train(2, device="cpu", progress=False)
    alone = digest_of(models[0].vae)
    with caplog.at_level(logging.WARNING, "scdecode"), ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda model: model.train(2, device="cpu", progress=False), models[1:3]))
    assert [digest_of(model.vae) for model in models[1:3]] == [alone, alone]
    threads = torch.get_num_threads()
    other = models[0]
    z = other.reference_latents()[:50]
    expected = other.decode(z).X, other.get_latent_representation()
    done = threading.Event()

    def compute():
        while not done.is_set():
            np.testing.assert_array_equal(other.decode(z).X, expected[0])
            np.testing.assert_array_equal(other.get_latent_representation(), expected[1])

    with ThreadPoolExecutor(1) as pool:
        computed = pool.submit(compute)
        models[3].train(2, device="cpu", progress=False)
        done.set()
        computed.result(WAIT)
    assert digest_of(models[3].vae) == alone
    assert torch.get_num_threads() == threads


def test_a_training_that_waits_says_so(adata, caplog):
    first, second = (make_model(adata, epochs=0) for _ in range(2))
    inside, go_on = threading.Event(), threading.Event()
    order = []

    def hold(done, total, row):
        inside.set()
        go_on.wait(WAIT)
        order.append("first")

    def train_second():
        second.train(1, progress=False, on_epoch=lambda *_: order.append("second"))

    threads = [
        threading.Thread(target=lambda: first.train(1, progress=False, on_epoch=hold)),
        threading.Thread(target=train_second),
    ]
    with caplog.at_level(logging.WARNING, "scdecode"):
        threads[0].start()
        assert inside.wait(WAIT)
        threads[1].start()
        while not caplog.records:
            threading.Event().wait(0.01)
        go_on.set()
        for thread in threads:
            thread.join(WAIT)
    assert order == ["first", "second"]
    assert "another model is being trained in this process" in caplog.text


def test_a_model_is_not_trained_within_its_own_training(adata):
    model, other = make_model(adata, epochs=0), make_model(adata, epochs=0)
    seen = []

    def again(done, total, row):
        other.train(1, progress=False)  # another model may be
        with pytest.raises(TrainingError, match="being changed already"):
            model.train(1, progress=False)
        seen.append(isolated(model.vae.decode.__self__.scale, *_inputs(model)).shape)  # and this one is used

    model.train(2, progress=False, on_epoch=again)
    assert len(model.history_table) == 2
    assert seen == [(1, 20)] * 2
    plain = make_model(adata, epochs=2)
    assert digest_of(plain.vae) == digest_of(model.vae)


def _inputs(model):
    n_columns = len(model.schema.n_levels)
    return torch.zeros(1, 4), torch.zeros(1, n_columns, dtype=torch.int64), torch.zeros(1, 0)


def test_readers_and_writers(adata):
    model = make_model(adata, epochs=0)
    with reading(model), reading(model), pytest.raises(TrainingError, match="in the middle of a computation"):  # noqa: SIM117
        with changing(model.vae, "train"):
            pass
    with changing(model.vae, "train"), reading(model), ThreadPoolExecutor(1) as pool:

        def read():
            with reading(0, None, model):
                pass

        with pytest.raises(TrainingError, match="being trained in another thread"):
            pool.submit(read).result(WAIT)
    inside, go_on, order = threading.Event(), threading.Event(), []

    def hold():
        with reading(model):
            inside.set()
            go_on.wait(WAIT)
            order.append("read")

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(WAIT)
    threading.Timer(0.05, go_on.set).start()
    with changing(model.vae, "train"):  # waits for the other
        order.append("changed")
    thread.join(WAIT)
    assert order == ["read", "changed"]


def test_a_model_of_classes_is_trained(adata):
    sd.SCANVI.setup_anndata(adata, labels_key="cell_type", unlabeled_category="none", batch_key="batch")
    model = sd.SCANVI(adata, n_latent=4, n_hidden=16)
    isolated(sd.SCANVI.train, model, 1, progress=False)
    assert model.is_trained
