"""After a fork, calls compute with one thread instead of waiting for threads that are not there."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from small_models import make_adata, make_model

import scdecode as sd

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def _refit(model):
    cells = model.adata
    path = sd.Trajectory.along_pseudotime(model, cells, "pseudotime", n_points=6)
    sd.refit(model, path, cells, pseudotime="pseudotime")


def _encode_decode_train(model):
    model.decode(model.get_latent_representation())
    model.train(1, progress=False)


@pytest.mark.parametrize("use", [_encode_decode_train, _refit])
@pytest.mark.filterwarnings("ignore::scdecode.errors.ScdecodeWarning")  # of few cells
def test_a_forked_process_encodes_decodes_trains_and_refits(use):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = make_model(make_adata(120, 20), epochs=1)
        use(model)  # threads of every kind begin
        large = torch.rand(1000, 1000)
        large @ large  # torch's own threads begin
        child = os.fork()
        if child == 0:
            try:
                use(model)
                os._exit(0)
            finally:
                os._exit(1)
        end = time.monotonic() + 60
        status = (0, 0)
        while status[0] == 0 and time.monotonic() < end:
            status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.02)
        if status[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert status == (child, 0)
    finally:
        torch.set_num_threads(before)


def _decode(directory, z):
    return sd.load(directory).decode(z).X


def test_spawned_processes_decode_the_same(tmp_path):
    model = make_model(make_adata(120, 20), epochs=1)
    model.save(tmp_path / "model")
    z = model.get_latent_representation()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(_decode, (tmp_path / "model", z)).get(120)
    np.testing.assert_array_equal(found, model.decode(z).X)
