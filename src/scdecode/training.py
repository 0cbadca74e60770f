"""Training: minibatches through the bound into Adam, with validation, early stopping, checkpoints and a history.

Each epoch draws its order and its noise from a seed of its own, so that a resumed run takes the steps that the unbroken
run would have taken.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scdecode.cells import Cells, check_unchanged
from scdecode.checkpoints import Checkpoint, moments_of, read_checkpoint, restore, training_lock, write_checkpoint
from scdecode.classification import Answers, SemiSupervised, SemiSupervisedElbo
from scdecode.config import TrainConfig
from scdecode.device_step import DeviceBound, on_device
from scdecode.draws import make_generator
from scdecode.errors import ConfigError, OutputError, TrainingError, TrainingWarning, warn
from scdecode.kernels import precision_of, usable
from scdecode.kernels.adam import KernelAdam
from scdecode.kernels.rows import Gatherer
from scdecode.kernels.threads import own_threads
from scdecode.minibatches import (
    Minibatch,
    SparseMinibatch,
    Split,
    gather,
    labelled_order,
    rows_of,
    split_cells,
    split_labelled,
)
from scdecode.networks import Decoder, allow_kernels
from scdecode.steps import KernelStep, can_step
from scdecode.vae import VAE, Elbo

Network = VAE | SemiSupervised
"""What can be trained: both have ``elbo``, whose parts can be added up, and a loss of them."""

OnEpoch = Callable[[int, int, dict[str, float]], None]
"""Called after each epoch with the epochs done, the epochs to do, and the epoch's row of the history."""


@dataclass(frozen=True, eq=False)
class History:
    """How a training went."""

    table: pd.DataFrame
    """A row an epoch: the losses in nats a cell, the weight of the KL term, the seconds it took."""
    ending: str
    """``"finished"``, ``"early stopping"``, ``"interrupted"`` or ``"failed"``."""
    split: Split
    resumed: bool
    """Whether the first epochs are those of a checkpoint."""


@dataclass
class _Run:
    """What changes from epoch to epoch, beside the weights."""

    rows: list[dict[str, float]] = field(default_factory=list)
    best: float = float("inf")
    since_best: int = 0

    def stops_early(self, config: TrainConfig) -> bool:
        return config.early_stopping and self.since_best >= max(config.early_stopping_patience, 1)

    def record(self, row: dict[str, float], config: TrainConfig) -> None:
        self.rows.append(row)
        validation = row.get("elbo_validation", float("nan"))
        if np.isnan(validation) or len(self.rows) <= config.early_stopping_warmup_epochs:
            return
        if validation < self.best - config.early_stopping_min_delta:
            self.best, self.since_best = validation, 0
        else:
            self.since_best += 1


Source = Callable[[Sequence[np.ndarray]], Iterator[Minibatch | SparseMinibatch]]
"""From the positions of the cells of each minibatch to these, each good until the next is asked for."""


@dataclass(frozen=True, eq=False)
class _Way:
    """How minibatches come, and how their bound is computed."""

    cells: Source
    labelled: Source  # beside the others
    bound: DeviceBound | None = None  # in place of the network's own

    def elbo(
        self, network: Network, cells: Minibatch | SparseMinibatch, generator: torch.Generator
    ) -> Elbo | SemiSupervisedElbo:
        if self.bound is None:
            return network.elbo(cells, generator)
        assert isinstance(cells, Minibatch)
        if isinstance(network, VAE):
            return self.bound.elbo(cells, generator)
        drawn = self.bound.reconstruct(cells, generator)
        latent, kl_z2, kl_y = network.classification.bound(drawn.posterior, drawn.latent, generator)
        return SemiSupervisedElbo(drawn.loss, latent, kl_z2=kl_z2, kl_y=kl_y, kl_l=drawn.kl_l)

    def answers(
        self, network: SemiSupervised, cells: Minibatch | SparseMinibatch, generator: torch.Generator
    ) -> Answers:
        if self.bound is None:
            return network.answers(cells, generator)
        assert isinstance(cells, Minibatch)
        mean_nk = self.bound.encode(cells, generator).mean
        return network.classification.answers(mean_nk, cells.codes_nc[:, -1], generator)


def _on_gpu(device: torch.device) -> bool:
    """Whether to train in the form that suits a GPU, which is right on any device."""
    return device.type == "cuda"


def _way_of(network: Network, cells: Cells, config: TrainConfig, device: torch.device, *, kernels: bool) -> _Way:
    """The way for a network that is on the device."""

    def source(gatherer: Gatherer | None) -> Source:
        return lambda minibatches: (gather(cells, rows, device, gatherer) for rows in minibatches)

    if _on_gpu(device):
        there, bound = on_device(_vae(network), cells, config, device)
        return _Way(there.minibatches, there.minibatches, bound)
    if config.precision == "bf16" and device.type != "cpu":
        raise ConfigError(f"precision: 'bf16' came, but it is for the CPU and for CUDA, not for {device.type}")
    one, other = (source(Gatherer(cells.counts) if kernels else None) for _ in range(2))
    return _Way(one, other)


def _vae(network: Network) -> VAE:
    return network.vae if isinstance(network, SemiSupervised) else network


@torch.enable_grad()
def fit(
    network: Network,
    cells: Cells,
    config: TrainConfig,
    *,
    device: str | torch.device = "cpu",
    on_epoch: OnEpoch | None = None,
    checkpoint: str | Path | None = None,
    on_failure: Callable[[History], None] | None = None,
    start: str | None = None,
) -> History:
    """Train a model in place.

    Parameters
    ----------
    network
        Left on the CPU, in evaluation mode and without gradients, with the weights of the last whole epoch, however
        training ends.
    cells
        To be split into training, validation and test cells.
    config
        How to train.
    device
        Where to train.
    on_epoch
        Told of each epoch.
    checkpoint
        A file to which the state is written after each epoch, and from which a broken-off training goes on. Where it
        cannot be written later than at the start, there is a warning, and training goes on.
    on_failure
        Told how far training came where an error ends it after an epoch, before the error is raised.
    start
        :func:`digest_of` the network before any training, for the checkpoint: that of another model is refused. By
        default as it is now.

    Raises
    ------
    TrainingError
        Where the loss is no longer a number; the message has the epoch, the step and the likely cause.
    ConfigError
        Where early stopping is asked for without validation cells, the checkpoint is of another training, or there are
        options of labelled cells for a network without classes.
    CountsError
        Where the counts changed since the cells were read.
    CorruptModelError, OutputError
        Where the checkpoint cannot be read, or cannot be written at the start.
    KeyboardInterrupt
        If the user interrupts before the first epoch is through; later, the training ends with what it has.
    """
    device = torch.device(device)
    split = _split_of(network, cells, config)
    if config.early_stopping and len(split.validation) == 0:
        raise ConfigError("early_stopping: there are no validation cells; lower train_size below 1")
    check_unchanged(cells, labels=True)
    n_epochs = config.epochs(len(cells))
    identity: dict[str, Any] = {}
    if checkpoint is not None:
        identity = {**_identity(network, cells, config), "crc32 of the first weights": start or digest_of(network)}
    locks = ExitStack()
    locks.enter_context(training_lock(checkpoint))
    run, whole = _Run(), _snapshot(network)
    ending, resumed = "failed", False  # until it is known otherwise
    kernels = False
    try:
        network.to(device).requires_grad_(True)
        if config.precision == "bf16" and device.type == "cpu":
            _lower_precision(_vae(network))
        if device.type == "cpu" and not _on_gpu(device) and _vae(network).takes_sparse and usable():
            kernels = True
            allow_kernels(network, True)
        way = _way_of(network, cells, config, device, kernels=kernels)
        optimizer = _optimizer(network, config, device, kernels=kernels)
        if checkpoint is not None:
            if Path(checkpoint).exists():
                progress = restore(checkpoint, read_checkpoint(checkpoint, identity), network, optimizer)
                run.rows, run.best, run.since_best = (progress[name] for name in ("rows", "best", "since_best"))
                whole, resumed = _snapshot(network), True
            if len(run.rows) > n_epochs:
                warn(
                    f"train: {checkpoint} has {len(run.rows)} epochs, more than the {n_epochs} asked for, and the "
                    "model has them now; pass another file name to begin anew",
                    TrainingWarning,
                )
            write_checkpoint(checkpoint, _state(network, optimizer, run, identity))  # a full disk is best known now
        step = None
        while len(run.rows) < n_epochs and not run.stops_early(config):
            if isinstance(optimizer, KernelAdam) and can_step(network) and (step is None or optimizer.moved):
                allow_kernels(network, True)
                step = KernelStep(_vae(network), optimizer, cells, min(config.batch_size + 1, len(split.train)))
            with own_threads() if kernels else nullcontext():
                row = _epoch(network, optimizer, cells, split, config, len(run.rows), device, way, step)
            run.record(row, config)
            whole = _snapshot(network)
            if checkpoint is not None:
                _keep(checkpoint, _state(network, optimizer, run, identity))
            if on_epoch is not None:
                on_epoch(len(run.rows), n_epochs, row)
        ending = "finished" if len(run.rows) >= n_epochs else "early stopping"
    except KeyboardInterrupt:
        if not run.rows:
            raise
        ending = "interrupted"
    finally:
        locks.close()
        network.load_state_dict(whole, strict=False)
        network.to("cpu").eval().requires_grad_(False)  # only training changes the weights
        if kernels:
            allow_kernels(network, False)
        _vae(network).decoder.precision = torch.float32
        network.zero_grad(set_to_none=True)
        history = History(
            pd.DataFrame(run.rows, index=pd.RangeIndex(len(run.rows), name="epoch")), ending, split, resumed
        )
        if ending == "failed" and run.rows and on_failure is not None:
            on_failure(history)
    return history


def _lower_precision(vae: VAE) -> None:
    """Let the CPU compute the products with the decoder's heads in bf16."""
    lacks = {
        "the decoder is linear": not isinstance(vae.decoder, Decoder),
        "gene_likelihood='normal' is not one of counts": not vae.config.has_counts,
        "encode_covariates=True": vae.config.encode_covariates,
        "Numba does not work": not usable(),
    }
    for reason, holds in lacks.items():
        if holds:
            raise ConfigError(f"precision: 'bf16' came, but not on the CPU where {reason}; pass precision='fp32'")
    vae.decoder.precision = precision_of("bf16")


def _optimizer(network: Network, config: TrainConfig, device: torch.device, *, kernels: bool) -> torch.optim.Adam:
    options: dict[str, Any] = {"lr": config.lr, "eps": config.eps, "weight_decay": config.weight_decay}
    if kernels:
        return KernelAdam(network.parameters(), **options)
    return torch.optim.Adam(network.parameters(), **options, fused=device.type != "mps")


def _split_of(network: Network, cells: Cells, config: TrainConfig) -> Split:
    if isinstance(network, SemiSupervised):
        split = split_labelled(_is_labelled(network, cells), config)
        if len(_labelled(network, cells, split, config, epoch=0)) < 2:  # batch normalisation has no variance of one
            raise ConfigError("n_samples_per_label: 1 came, but there is one class alone; 2 or more were expected")
        return split
    for name in ("classification_ratio", "n_samples_per_label"):
        if getattr(config, name) != getattr(TrainConfig(), name):
            raise ConfigError(f"{name}: {getattr(config, name)!r} came, but only SCANVI learns from labelled cells")
    return split_cells(len(cells), config)


def _is_labelled(network: SemiSupervised, cells: Cells) -> np.ndarray:
    label_n = cells.codes_nc[:, -1]
    return (label_n < network.classification.n_classes) & (label_n != network.unlabeled_code)


def _labelled(network: SemiSupervised, cells: Cells, split: Split, config: TrainConfig, epoch: int) -> np.ndarray:
    """Positions of the labelled training cells of an epoch, in its order."""
    rows = split.train[_is_labelled(network, cells)[split.train]]
    generator = np.random.default_rng([config.seed, 3, epoch])
    return labelled_order(cells.codes_nc[:, -1], rows, config.n_samples_per_label, generator)


def _epoch(
    network: Network,
    optimizer: torch.optim.Optimizer,
    cells: Cells,
    split: Split,
    config: TrainConfig,
    epoch: int,
    device: torch.device,
    way: _Way,
    by_hand: KernelStep | None,
) -> dict[str, float]:
    start = time.perf_counter()
    kl_weight = config.kl_weight(epoch)
    order = np.random.default_rng([config.seed, 1, epoch]).permutation(split.train)
    minibatches = list(rows_of(order, config.batch_size))
    labelled: list[np.ndarray] = []
    if isinstance(network, SemiSupervised):
        few = list(rows_of(_labelled(network, cells, split, config, epoch), config.batch_size))
        labelled = list(itertools.islice(itertools.cycle(few), len(minibatches)))
    generator = make_generator(config.seed * 1_000_003 + epoch, device)
    network.train()
    parts = torch.zeros(len(minibatches), 4, device=device)  # read once an epoch, so that no step waits for it
    answers = torch.zeros(len(labelled), 2, device=device)
    if by_hand is not None:
        parts = by_hand.epoch(minibatches, kl_weight, generator)
    few_cells = way.labelled(labelled)
    for step, some_cells in enumerate(way.cells(minibatches if by_hand is None else [])):
        elbo = way.elbo(network, some_cells, generator)
        loss = elbo.loss(kl_weight)
        if isinstance(network, SemiSupervised):
            answer = way.answers(network, next(few_cells), generator)
            loss = loss + config.classification_ratio * answer.cross_entropy.mean()
            answers[step] = answer.sums().detach()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        parts[step, :3], parts[step, 3] = elbo.sums().detach(), loss.detach() * len(some_cells)
    network.eval()
    _check_finite(parts, network, cells, minibatches, config, epoch)
    row = _row(parts.double().sum(0).cpu() / len(order), "train")
    if labelled:
        row |= _label_row(answers.double().sum(0).cpu() / sum(len(some) for some in labelled), "train")
    if len(split.validation) and (epoch + 1) % config.check_val_every_n_epoch == 0:
        row |= _validate(network, cells, split.validation, config, kl_weight, device, way, generator)
    return row | {"kl_weight": kl_weight, "seconds": time.perf_counter() - start}


@torch.no_grad()
def _validate(
    network: Network,
    cells: Cells,
    rows: np.ndarray,
    config: TrainConfig,
    kl_weight: float,
    device: torch.device,
    way: _Way,
    generator: torch.Generator,
) -> dict[str, float]:
    parts = torch.zeros(4, dtype=torch.float64, device=device)
    for some in way.cells(list(rows_of(rows, config.batch_size, lone=True))):
        elbo = way.elbo(network, some, generator)
        parts[:3] += elbo.sums()
        parts[3] += elbo.loss(kl_weight) * len(some)
    row = _row(parts.cpu() / len(rows), "validation")
    labelled = rows[_is_labelled(network, cells)[rows]] if isinstance(network, SemiSupervised) else rows[:0]
    if isinstance(network, SemiSupervised) and len(labelled):
        answers = torch.zeros(2, dtype=torch.float64, device=device)
        for some in way.labelled(list(rows_of(labelled, config.batch_size, lone=True))):
            answers += way.answers(network, some, generator).sums()
        row |= _label_row(answers.cpu() / len(labelled), "validation")
        row["validation_loss"] += config.classification_ratio * row["validation_classification_loss"]
    return row


def _row(parts: Tensor, of: str) -> dict[str, float]:
    """Losses in nats a cell: the parts of the bound, and what training minimises; the names are scvi-tools' own."""
    reconstruction, kl_z, kl_l, loss = parts.tolist()
    return {
        f"elbo_{of}": reconstruction + kl_z + kl_l,
        f"reconstruction_loss_{of}": reconstruction,
        f"kl_local_{of}": kl_z + kl_l,
        f"{of}_loss": loss,
    }


def _label_row(answers: Tensor, of: str) -> dict[str, float]:
    """The cross-entropy (nats) and the share of right answers of labelled cells; likewise named."""
    cross_entropy, accuracy = answers.tolist()
    return {f"{of}_classification_loss": cross_entropy, f"{of}_accuracy": accuracy}


def _check_finite(
    parts: Tensor, network: Network, cells: Cells, minibatches: list[np.ndarray], config: TrainConfig, epoch: int
) -> None:
    """Raise :class:`TrainingError` where a loss or a weight is no number, with the likely cause."""
    bad = (~torch.isfinite(parts).all(dim=1)).nonzero().reshape(-1).tolist()
    values = network.state_dict().values()
    if not bad and all(torch.isfinite(value.sum()) or torch.isfinite(value).all() for value in values):
        return  # a sum of numbers that are none is none, and takes no memory
    step = bad[0] if bad else len(minibatches) - 1
    rows = minibatches[step]
    causes = []
    observed = network.config.use_observed_lib_size and not network.config.use_size_factor
    if observed and (cells.library_n[rows] <= 0).any():
        causes.append("the minibatch has a cell without counts: remove such cells")
    data = cells.counts[rows].data
    if network.config.has_counts and (data != np.rint(data)).any():
        causes.append("the values are not whole numbers: train on raw counts, not on normalised data")
    if config.lr > 5e-3:
        causes.append(f"the learning rate {config.lr:g} is high: try 1e-3")
    if not causes:
        largest = float(data.max()) if len(data) else 0.0
        causes.append(
            f"no cause is plain; the largest count of the minibatch is {largest:g}; "
            "try a lower lr, or gene_likelihood='nb'"
        )
    raise TrainingError(
        f"train: the loss is no longer a number in epoch {epoch + 1}, step {step + 1} of {len(minibatches)}. "
        f"Likely cause: {'; '.join(causes)}. The model has the weights of the last whole epoch ({epoch})"
    )


def _snapshot(network: Network) -> dict[str, Tensor]:
    """A copy of what training changes; a linear decoder's idle head has running statistics, which do not move."""
    idle = {id(weight) for weight in _vae(network).idle()}
    values = network.state_dict(keep_vars=True).items()
    return {name: value.detach().clone() for name, value in values if id(value) not in idle}


def digest_of(network: Network) -> str:
    """A short digest of all weights."""
    digest = 0
    for weight in network.state_dict().values():
        digest = zlib.crc32(np.ascontiguousarray(weight.detach().cpu().numpy()).data, digest)
    return f"{digest:08x}"


def _identity(network: Network, cells: Cells, config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint must share with the run that goes on from it; the number of epochs may differ."""
    training = dataclasses.asdict(config)
    del training["max_epochs"]
    digest = 0
    counts = (cells.counts.data, cells.counts.indices, cells.counts.indptr)
    for array in (*counts, cells.codes_nc, cells.continuous_nd, cells.size_factor_n):
        if array is not None:
            digest = zlib.crc32(np.ascontiguousarray(array).data, digest)
    data = {
        "n_cells": len(cells),
        "n_genes": network.n_genes,
        "total_counts": float(cells.library_n.sum(dtype=np.float64)),
        "crc32 of the counts and conditions": f"{digest:08x}",
    }
    classes: dict[str, Any] = {}
    if isinstance(network, SemiSupervised):
        options = dataclasses.asdict(network.classification.config)
        classes = {f"classifier {name}": value for name, value in options.items()}
    return {**dataclasses.asdict(network.config), **classes, **training, **data}


def _keep(path: str | Path, state: Checkpoint) -> None:
    try:
        write_checkpoint(path, state)
    except OutputError as error:  # a disk that fills up should not cost the training
        warn(f"train: {error}; training goes on", TrainingWarning)


def _state(network: Network, optimizer: torch.optim.Optimizer, run: _Run, identity: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        weights={name: value.clone() for name, value in network.state_dict().items()},
        moments=moments_of(optimizer),
        progress={"rows": run.rows, "best": run.best, "since_best": run.since_best},
        identity=identity,
    )
