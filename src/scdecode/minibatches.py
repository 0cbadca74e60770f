"""Which cells are trained on, in which order, and a handful of them as tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from scdecode._utils.notebook import Shown
from scdecode.cells import Cells
from scdecode.config import TrainConfig
from scdecode.errors import ConfigError
from scdecode.kernels.rows import Gatherer, SparseRows


@dataclass(frozen=True, eq=False)
class Minibatch:
    """Some cells as tensors on one device."""

    x_ng: Tensor  # (n, g) float32 counts, dense
    codes_nc: Tensor  # (n, c) int64: batch, each categorical covariate, label
    continuous_nd: Tensor  # (n, d) float32
    library_n1: Tensor  # (n, 1) float32: total counts, or the size factor where there is one

    def __len__(self) -> int:
        return self.x_ng.shape[0]


@dataclass(frozen=True, eq=False)
class SparseMinibatch:
    """Some cells on the CPU, their counts as sparse as they are kept."""

    rows: SparseRows
    codes_nc: Tensor
    continuous_nd: Tensor
    library_n1: Tensor

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False, repr=False)
class Split(Shown):
    """Positions of the cells of each set, each ``int64`` and one-dimensional."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_cells(n_cells: int, config: TrainConfig) -> Split:
    """Draw the training, validation and test cells.

    The sizes are those of scvi-tools: ``ceil(train_size n)`` and ``floor(validation_size n)``. Unshuffled, the
    validation cells come first, then the training cells, then the rest.

    Raises
    ------
    ConfigError
        Where fewer than two cells are left to train on.
    """
    return _split([np.arange(n_cells)], config)


def split_labelled(is_labelled_n: np.ndarray, config: TrainConfig) -> Split:
    """Draw the training, validation and test cells of the labelled and of the others, each as :func:`split_cells`.

    Each set then has its share of the labelled cells, which come first in it, as in scvi-tools.

    Parameters
    ----------
    is_labelled_n
        ``(n,)`` bool.
    config
        How to train.

    Raises
    ------
    ConfigError
        Where fewer than two labelled cells are left to train on: batch normalisation has no variance of one.
    """
    split = _split([np.flatnonzero(is_labelled_n), np.flatnonzero(~is_labelled_n)], config)
    n_labelled = int(is_labelled_n[split.train].sum())
    if n_labelled < 2:
        raise ConfigError(
            f"train_size: {config.train_size} of {int(is_labelled_n.sum())} labelled cells leaves {n_labelled} to "
            "train on, at least 2 were expected; label more cells"
        )
    return split


def _split(groups: Sequence[np.ndarray], config: TrainConfig) -> Split:
    """The sets of each group of cells, one group after the other."""
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    generator = np.random.default_rng([config.seed, 0])
    for group in groups:
        n_train = math.ceil(config.train_size * len(group) - 1e-9)
        left = len(group) - n_train
        n_validation = left
        if config.validation_size is not None:
            n_validation = min(math.floor(config.validation_size * len(group)), left)
        if config.shuffle_set_split:
            group = generator.permutation(group)
        stops = (n_validation, n_validation + n_train)
        for part, some in zip(parts, np.split(group, stops), strict=True):
            part.append(some)
    validation, train, test = (np.concatenate(part) for part in parts)
    if len(train) < 2:
        n_cells = sum(len(group) for group in groups)
        raise ConfigError(
            f"train_size: {config.train_size} of {n_cells} cells leaves {len(train)} to train on, at least 2 were "
            "expected"
        )
    return Split(train=train, validation=validation, test=test)


def labelled_order(
    class_n: np.ndarray, rows: np.ndarray, n_samples_per_label: int | None, generator: np.random.Generator
) -> np.ndarray:
    """Positions of labelled cells in the order of an epoch.

    Parameters
    ----------
    class_n
        ``(n,)`` the class of each cell.
    rows
        Positions of the labelled cells among them.
    n_samples_per_label
        Cells of each class, at most; None: all.
    generator
        Of the choice and of the order.
    """
    if n_samples_per_label is not None:
        classes = (rows[class_n[rows] == one] for one in np.unique(class_n[rows]))
        chosen = (generator.permutation(members)[:n_samples_per_label] for members in classes)
        rows = np.concatenate(list(chosen))
    return generator.permutation(rows)


def rows_of(order: np.ndarray, size: int, *, lone: bool = False) -> Iterator[np.ndarray]:
    """Cut an order of cells into minibatches.

    Unless ``lone``, a last minibatch of one cell joins the one before: batch normalisation has no variance of it.
    """
    stops = list(range(size, len(order), size))
    if stops and not lone and len(order) - stops[-1] == 1:
        stops.pop()
    yield from np.split(order, stops)


@overload
def gather(cells: Cells, rows: np.ndarray | slice, device: torch.device) -> Minibatch: ...


@overload
def gather(
    cells: Cells, rows: np.ndarray | slice, device: torch.device, sparse: Gatherer | None
) -> Minibatch | SparseMinibatch: ...


def gather(
    cells: Cells, rows: np.ndarray | slice, device: torch.device, sparse: Gatherer | None = None
) -> Minibatch | SparseMinibatch:
    """The cells at ``rows`` as tensors; the counts become dense here and not before, or (``sparse``) not at all."""
    conditions = small_tensors(cells, rows, device)
    if sparse is not None:
        assert not isinstance(rows, slice)
        return SparseMinibatch(sparse.gather(rows), **conditions)
    some = cells.counts[rows]
    # torch aligns what it allocates, numpy does not; and matrix products of another alignment round otherwise
    x_ng = torch.empty(some.shape, dtype=torch.float32)
    some.toarray(out=x_ng.numpy())
    return Minibatch(x_ng=x_ng.to(device), **conditions)


def small_tensors(cells: Cells, rows: np.ndarray | slice, device: torch.device) -> dict[str, Tensor]:
    """What a minibatch has beside the counts."""
    library_n = cells.library_n if cells.size_factor_n is None else cells.size_factor_n
    return {
        "codes_nc": torch.from_numpy(cells.codes_nc[rows]).to(device),
        "continuous_nd": torch.from_numpy(cells.continuous_nd[rows]).to(device),
        "library_n1": torch.from_numpy(library_n[rows, None]).to(device),
    }
