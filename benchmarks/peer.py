"""scvi-tools as a careful user runs it: on the CPU, without a progress bar, and without its chatter.

Its defaults stand otherwise. It then validates nothing while it trains and keeps the history that ``model.history``
shows; leaving out the logger too (``logger=False``) makes it at most 2 % faster, and takes the history away.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing scvi-tools and what it imports have to say
    import lightning.pytorch as pl
    import scvi

NAME = f"scvi-tools {scvi.__version__}"

_CHATTER = (
    ("lightning.*", Warning),  # data loaders with few workers, few steps between two lines of the log, and so on
    ("scvi.*", UserWarning),
    ("torch.*", FutureWarning),
)


class EpochTimes(pl.Callback):
    """When each epoch of training ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


def quiet() -> None:
    """Silence what scvi-tools and lightning say of themselves, and nothing else."""
    for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module, category in _CHATTER:
        warnings.filterwarnings("ignore", category=category, module=module)


def train(model: scvi.model.SCVI, max_epochs: int, **options: Any) -> list[float]:
    """Train a model on the CPU; return when each epoch ended."""
    clock = EpochTimes()
    model.train(max_epochs=max_epochs, accelerator="cpu", enable_progress_bar=False, callbacks=[clock], **options)
    return clock.times
