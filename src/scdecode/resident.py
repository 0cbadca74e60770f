"""Cells on a GPU: their counts kept there or sent there ahead of each step, their rows made dense there and not before.

No step waits for the GPU: how many entries a minibatch has, which would have to be asked of it, is known on the host.
Everything here computes the same on any device; that a GPU alone is worth it is for :mod:`scdecode.training` to say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scdecode.cells import Cells
from scdecode.minibatches import Minibatch, small_tensors

_DENSE = 48  # arrays of the shape of a minibatch, more than a step holds at once where nothing is fused
_COPIES = 5  # of the weights: gradients, two moments, the last whole epoch, and one to spare
_SHARE = 0.9  # of the free memory, which others may want a part of and which is never all in one piece


def bytes_of(cells: Cells) -> int:
    """Bytes of the counts of cells as :class:`DeviceCells` keeps them: a gene and a count an entry, a start a cell."""
    return 8 * cells.counts.nnz + 8 * (len(cells) + 1)


def fits(n_bytes: int, n_free: int, *, n_weights: int, n_genes: int, batch_size: int) -> bool:
    """Whether counts fit beside what training needs.

    Parameters
    ----------
    n_bytes
        Bytes of the counts, :func:`bytes_of`.
    n_free
        Bytes that are free where the weights are already there.
    n_weights
        Numbers in the network.
    n_genes, batch_size
        Of the minibatches.
    """
    return n_bytes + 4 * (_COPIES * n_weights + _DENSE * batch_size * n_genes) <= _SHARE * n_free


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device; on another than a GPU there is no limit."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else sys.maxsize


def dense_rows(n_entries_n: Tensor, genes: Tensor, counts: Tensor, n_genes: int) -> Tensor:
    """Rows of a CSR matrix made dense where they lie, ``(n, g)`` float32.

    Parameters
    ----------
    n_entries_n
        Entries of each row, int64.
    genes, counts
        ``(nnz,)`` the entries, row after row; no gene twice in a row.
    n_genes
        Number of genes.
    """
    n = len(n_entries_n)
    rows = _row_of_entries(n_entries_n, len(genes))
    dense = torch.zeros(n * n_genes, dtype=torch.float32, device=counts.device)
    return dense.index_put_((rows * n_genes + genes,), counts).view(n, n_genes)


def _row_of_entries(n_entries_n: Tensor, n_entries: int) -> Tensor:
    """``(n_entries,)`` the row of each entry. Without its number, torch would ask the GPU and wait for the answer."""
    rows = torch.arange(len(n_entries_n), device=n_entries_n.device)
    return torch.repeat_interleave(rows, n_entries_n, output_size=n_entries)


@dataclass(frozen=True, eq=False)
class _Resident:
    """The counts, on the device."""

    indptr: Tensor  # (n + 1,) int64
    genes: Tensor  # (nnz,) int32
    counts: Tensor  # (nnz,) float32


@dataclass(frozen=True, eq=False)
class _Sent:
    """The rows of one minibatch, on their way to the device."""

    n_entries_n: Tensor
    genes: Tensor
    counts: Tensor
    arrived: torch.cuda.Event | None


class DeviceCells:
    """Cells whose minibatches become dense on a device.

    The conditions and library sizes are kept there. The counts are kept there too (``resident``), or else sent, each
    minibatch's sparse rows while the step before is taken.

    Parameters
    ----------
    cells
        Their counts are canonical CSR: no gene twice in a row.
    device
        Where to.
    resident
        Keep the counts there.
    """

    def __init__(self, cells: Cells, device: torch.device, *, resident: bool) -> None:
        self._csr, self._device = cells.counts, device
        self._n_entries_n = np.diff(cells.counts.indptr).astype(np.int64)
        self._small = small_tensors(cells, np.arange(len(cells)), device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and not resident else None
        self._resident: _Resident | None = None
        if resident:
            csr = cells.counts
            self._resident = _Resident(
                indptr=_tensor(csr.indptr, np.int64).to(device),
                genes=_tensor(csr.indices, np.int32).to(device),
                counts=_tensor(csr.data, np.float32).to(device),
            )

    @property
    def resident(self) -> bool:
        """Whether the counts are kept on the device."""
        return self._resident is not None

    def minibatches(self, minibatches: Sequence[np.ndarray]) -> Iterator[Minibatch]:
        """The cells at each of some arrays of positions; two such iterations may go on side by side."""
        if not minibatches:
            return
        order = torch.from_numpy(np.concatenate(minibatches)).to(self._device)  # of all of them at once
        stops = np.cumsum([0, *map(len, minibatches)]).tolist()
        ahead = None if self._resident else self._send(minibatches[0])
        for i, rows in enumerate(minibatches):
            at = order[stops[i] : stops[i + 1]]
            if self._resident is not None:
                x_ng = self._dense(self._resident, at, int(self._n_entries_n[rows].sum()))
            else:
                assert ahead is not None
                sent, ahead = ahead, None
                if i + 1 < len(minibatches):
                    ahead = self._send(minibatches[i + 1])  # while the GPU is at the step before
                x_ng = self._receive(sent)
            yield Minibatch(x_ng=x_ng, **{name: tensor[at] for name, tensor in self._small.items()})

    def _dense(self, kept: _Resident, at: Tensor, n_entries: int) -> Tensor:
        """The rows at ``at`` of the resident counts."""
        starts_n = kept.indptr[at]
        n_entries_n = kept.indptr[at + 1] - starts_n
        before_n = n_entries_n.cumsum(0) - n_entries_n  # entries of the rows before
        shift = (starts_n - before_n)[_row_of_entries(n_entries_n, n_entries)]
        entries = torch.arange(n_entries, device=at.device) + shift
        return dense_rows(n_entries_n, kept.genes[entries], kept.counts[entries], self._csr.shape[1])

    def _send(self, rows: np.ndarray) -> _Sent:
        some = self._csr[rows]
        here = (
            torch.from_numpy(self._n_entries_n[rows]),
            _tensor(some.indices, np.int32),
            _tensor(some.data, np.float32),
        )
        if self._stream is None:
            n_entries_n, genes, counts = (one.to(self._device) for one in here)
            return _Sent(n_entries_n, genes, counts, arrived=None)
        with torch.cuda.stream(self._stream):
            # torch keeps pinned memory for the next minibatch, and gives it out no sooner than its copy is made
            n_entries_n, genes, counts = (one.pin_memory().to(self._device, non_blocking=True) for one in here)
            return _Sent(n_entries_n, genes, counts, arrived=self._stream.record_event())

    def _receive(self, sent: _Sent) -> Tensor:
        if sent.arrived is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(sent.arrived)  # the GPU waits, the host does not
            for one in (sent.n_entries_n, sent.genes, sent.counts):
                one.record_stream(stream)  # its memory is taken on the other stream, but read on this one
        return dense_rows(sent.n_entries_n, sent.genes, sent.counts, self._csr.shape[1])


def _tensor(array: np.ndarray, dtype: type) -> Tensor:
    """An array as a tensor, over the same memory where that can be."""
    array = np.ascontiguousarray(array, dtype=dtype)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
