"""After a fork, calls compute with one thread instead of waiting for threads that are not there."""

import os
import signal
import time

import pytest
import torch
from small_models import make_adata, make_model

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def test_a_forked_process_encodes_decodes_and_trains():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = make_model(make_adata(120, 20), epochs=1)
        large = torch.rand(1000, 1000)
        large @ large  # torch's own threads begin
        child = os.fork()
        if child == 0:
            try:
                model.decode(model.get_latent_representation())
                model.train(1, progress=False)
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
