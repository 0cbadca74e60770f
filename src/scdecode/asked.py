"""What the methods on cells are asked for: which cells, which genes, which batches; and draws from their latents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor, nn
from torch.distributions import Normal

from scdecode._utils.counts_place import counts_in
from scdecode._utils.inference import inference_on
from scdecode._utils.levels import Category
from scdecode._utils.memory import check_draws
from scdecode._utils.names import are_numbers, check_names
from scdecode._utils.rows import check_rows
from scdecode.cells import UNREAD, Cells, check_cells, check_libraries, check_unchanged, read_cells
from scdecode.config import ModelConfig
from scdecode.devices import choose_device
from scdecode.draws import draw_normal, make_generator
from scdecode.encoding import BATCH_SIZE, encode_sparse, stays_sparse
from scdecode.errors import ConditionError, CountsWarning, InputError, check_integer, listing, warn
from scdecode.minibatches import Minibatch, gather, rows_of
from scdecode.said import read_weights
from scdecode.schema import Schema
from scdecode.training import Network
from scdecode.vae import VAE

TILE_BYTES = 4 * 2**20
"""Of the expression that is computed at once, if a row of it is not larger: so much fits the processor's cache."""


AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)


class OnCells(Protocol):
    """What the methods on cells need of a model."""

    config: ModelConfig
    schema: Schema
    vae: VAE
    _cells: Cells | None
    _origin: Any  # the program that trained it, where it was another one

    @property
    def adata(self) -> AnnData | None:
        """The AnnData that the model was made of."""

    def check_trained(self) -> None:
        """Raise an error where the model has no trained weights."""

    def _network(self) -> Network:
        """What is trained: the VAE, or more."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Cells in the genes and codes of a model, with their names and those of the genes."""

    cells: Cells
    cell_names: pd.Index
    gene_names: pd.Index


@dataclass(frozen=True, eq=False)
class Latents:
    """The posteriors of cells, on the CPU."""

    z: Normal  # (n, k), before the softmax of latent_distribution="ln"
    log_library_n1: Tensor  # of the total count or the size factor; the mean of a learned one
    library_sd_n1: Tensor | None  # of a learned library size

    def draw(
        self, vae: VAE, n_samples: int, generator: torch.Generator, rows: np.ndarray | slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Draw latent points ``(draws, rows, k)`` and log library sizes ``(draws or 1, rows, 1)``, on the CPU."""
        posterior = Normal(self.z.loc[rows], self.z.scale[rows], validate_args=False)
        check_draws(n_samples, posterior.loc.numel())
        latent = vae.to_latent(draw_normal(posterior, generator, n_samples))
        log_library = self.log_library_n1[rows]
        if self.library_sd_n1 is None:
            return latent, log_library.unsqueeze(0)
        library = Normal(log_library, self.library_sd_n1[rows], validate_args=False)
        return latent, draw_normal(library, generator, n_samples)


def cells_for(
    model: OnCells,
    adata: AnnData | None,
    indices: Any,
    *,
    need_conditions: bool,
    layer: str | None = None,
    use_raw: bool | None = None,
) -> Cells:
    """The cells that a method was given, or those that the model was made of.

    Parameters
    ----------
    model
        Trained, or an error is raised.
    adata, indices
        As the user gave them; None is all.
    need_conditions
        Whether a batch or a covariate that is not there is an error.
    layer, use_raw
        Where the counts of ``adata`` are; by default where those of the training cells were.

    Raises
    ------
    NotTrainedError, InputError, CountsError, ConditionError
        For a model without weights or without cells, and for cells that do not fit it.
    """
    model.check_trained()
    if adata is None and model._cells is not None:
        if layer is not None or use_raw is not None:
            raise InputError("layer, use_raw: got one without adata; expected both; pass the AnnData, or leave it out")
        check_unchanged(model._cells, labels=model.config.dispersion == "gene-label")
        return model._cells if indices is None else model._cells.at(_rows(model, adata, indices))
    adata = model.adata if adata is None else adata
    if adata is None:
        raise InputError("adata: none came, and a model that was opened from files has no cells; pass an AnnData")
    cells = read_cells(
        adata, model.schema, need_conditions=need_conditions, indices=indices, layer=layer, use_raw=use_raw
    )
    columns = counts_in(adata, model.schema.columns, layer, use_raw)
    check_cells(cells, model.config, columns, adata, need_library=False, foreign=model._origin is not None)
    return cells


def choose(model: OnCells, adata: AnnData | None, indices: Any, *, need_library: bool = True) -> Chosen:
    """Cells to be decoded under their own conditions, with names.

    Raises
    ------
    ConditionError
        Where labels or a size factor that the decoder needs are not there; else as :func:`cells_for`.
    """
    cells = cells_for(model, adata, indices, need_conditions=True)
    columns, config = model.schema.columns, model.config
    if config.dispersion == "gene-label" and (cells.codes_nc[:, -1] == UNREAD).any():
        raise ConditionError(f"adata.obs: there is no {columns.labels_key!r}, which dispersion='gene-label' needs")
    if need_library and config.use_size_factor and np.isnan(np.asarray(cells.size_factor_n)).any():
        raise ConditionError(f"adata.obs: there is no {columns.size_factor_key!r}, the size factor of this model")
    source, names = model.adata if adata is None else adata, cell_names(model, adata, indices)
    if source is None:
        if need_library:
            check_libraries(cells, config, names)
        return Chosen(cells, names, pd.Index(model.schema.genes))
    if need_library:
        check_libraries(cells, config, names)
    same = tuple(source.var_names) == model.schema.genes
    return Chosen(cells, names, source.var_names if same else pd.Index(model.schema.genes))


def cell_names(model: OnCells, adata: AnnData | None, indices: Any) -> pd.Index:
    """Return the names of the cells that :func:`cells_for` gives for the same arguments."""
    source = model.adata if adata is None else adata
    if source is None:
        return pd.RangeIndex(0 if model._cells is None else len(model._cells)).astype(str)
    return source.obs_names if indices is None else source.obs_names[_rows(model, adata, indices)]


def _rows(model: OnCells, adata: AnnData | None, indices: Any) -> np.ndarray:
    """Positions of the cells that are wanted."""
    source = model.adata if adata is None else adata
    assert source is not None, "cells come from an AnnData"
    return check_rows(indices, source.n_obs, source.obs_names)


Batch = int | np.ndarray | None
"""A batch to decode cells in: its code, a code for each cell, ``(n,)``, or None for the cells' own."""


def read_batches(schema: Schema, transform_batch: Any, cell_names: pd.Index) -> list[tuple[Batch, float]]:
    """Return the batches to decode in with their weights, which sum to one.

    As in scvi-tools a number is the name of a batch too, not its code.

    Parameters
    ----------
    schema
        Of the model.
    transform_batch
        A name; a list of names to average over, or a mapping of names to weights, in which None is a cell's own batch;
        a Series or an array of one name for each cell. An array of names that differ, and that are not as many as the
        cells, is averaged over, as in scvi-tools.
    cell_names
        Names of the cells.

    Raises
    ------
    ConditionError
        For a name that is none of the training batches, missing names, weights that are none, and a Series of other
        cells.
    InputError
        For no name at all, a name that comes twice, and an array of which it is not clear what it means.
    """
    value = transform_batch.detach().cpu().numpy() if isinstance(transform_batch, Tensor) else transform_batch
    arrays = np.ndarray | pd.Series | pd.Index | pd.api.extensions.ExtensionArray
    if isinstance(value, arrays):
        if np.ndim(value) > 0:
            return _read_batch_array(schema, value, cell_names)
        value = value.item()
    weights = None
    if isinstance(value, Mapping):
        names = list(value)
        weights = read_weights("transform_batch", list(value.values())) if names else []
    else:
        names = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if not names:
        raise InputError("transform_batch: an empty list came, a batch, a list of batches or None was expected")
    codes = [None if name is None else int(_batch_codes(schema, [name])[0]) for name in names]
    if len(set(codes)) < len(codes):
        raise InputError(
            f"transform_batch: got {listing(names)}, in which a batch comes twice; expected each once; for weights "
            "pass a mapping of names to weights"
        )
    weights = [1 / len(codes)] * len(codes) if weights is None else weights
    return [(code, weight) for code, weight in zip(codes, weights, strict=True) if weight > 0]


def _read_batch_array(schema: Schema, values: Any, cell_names: pd.Index) -> list[tuple[Batch, float]]:
    """Read an array of names: one for each cell, or some that differ, to average over."""
    masked = isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values)
    array, n = np.asarray(values, dtype=object), len(cell_names)
    if array.ndim != 1 or len(array) == 0 or masked or pd.isna(array).any():
        what = "masked or missing names" if array.ndim == 1 and len(array) else f"an array of shape {array.shape}"
        raise InputError(f"transform_batch: got {what}, expected names of batches, or one for each of the {n:,} cells")
    codes_n = _batch_codes(schema, array)
    several = len(np.unique(codes_n)) == len(codes_n)  # each batch once
    if len(array) != n:
        if not several:
            raise InputError(
                f"transform_batch: got an array of {len(array):,} names, some of them twice; expected one for each of "
                f"the {n:,} cells; to average over batches pass a list of their names, or a mapping of names to weights"
            )
        return [(int(code), 1 / len(codes_n)) for code in codes_n]
    check_names("transform_batch", values, cell_names, "cells")
    named = isinstance(values, pd.Series) and not are_numbers(values.index)
    if several and n > 1 and not named:
        raise InputError(
            f"transform_batch: got an array of {n:,} batches for {n:,} cells, which may be one for each cell or "
            "batches to average over; pass a list of names to average over, or a Series that names the cells"
        )
    return [(codes_n, 1.0)]


def _batch_codes(schema: Schema, names: Sequence[Any] | np.ndarray) -> np.ndarray:
    batches = Category("batch", ("0",)) if schema.batch is None else schema.batch  # scvi-tools calls the one batch 0
    return batches.encode(names, "transform_batch", "training batches")


def gene_positions(schema: Schema, gene_list: Any) -> np.ndarray | None:
    """Positions of the genes of a list, in the order of the model; None is all.

    As in scvi-tools, names that are no genes of the model are left out, with a warning.

    Raises
    ------
    InputError
        Where none is a gene of the model.
    """
    if gene_list is None:
        return None
    if isinstance(gene_list, str) or not isinstance(gene_list, Iterable):
        raise InputError(f"gene_list: {gene_list!r} came, a list of names of genes was expected")
    names = list(dict.fromkeys(str(name) for name in gene_list))
    unknown = [name for name in names if name not in schema.gene_codes]
    if len(unknown) == len(names):
        raise InputError(
            f"gene_list: {listing(names)} came, none of which is among the {schema.n_genes:,} genes of the model "
            f"{listing(schema.genes, 5)}"
        )
    if unknown:
        warn(
            f"gene_list: {len(unknown):,} of {len(names):,} names are not among the {schema.n_genes:,} genes of the "
            f"model and are left out {listing(unknown, 5)}",
            CountsWarning,
        )
    return np.sort([schema.gene_codes[name] for name in names if name in schema.gene_codes])


@dataclass(frozen=True, eq=False)
class Computing(Generic[AnyNetwork]):
    """What a computation on cells needs: a network at rest, where it is, and random numbers there."""

    network: AnyNetwork
    device: torch.device
    generator: torch.Generator

    @property
    def cpu_generator(self) -> torch.Generator:
        """Generator of what is drawn on the CPU."""
        return self.generator if self.device.type == "cpu" else make_generator(self.generator.initial_seed())


@contextmanager
def computing(network: AnyNetwork, device: str, seed: int) -> Iterator[Computing[AnyNetwork]]:
    """A network in evaluation mode on a device with seeded draws; within, there are no gradients."""
    check_integer("seed", seed, minimum=0)
    there = choose_device(device)
    with torch.no_grad():
        yield Computing(inference_on(network, there), there, make_generator(int(seed), there))


def minibatches_of(cells: Cells, batch_size: int | None, device: torch.device) -> Iterator[Minibatch]:
    """The cells in order, some at a time, made dense one after the other."""
    batch_size = BATCH_SIZE if batch_size is None else batch_size
    check_integer("batch_size", batch_size, minimum=1)
    for rows in rows_of(np.arange(len(cells)), batch_size, lone=True):
        yield gather(cells, slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else rows, device)


def encode_with_library(vae: VAE, cells: Cells, batch_size: int | None, device: torch.device) -> Latents:
    """The posteriors of cells; inside :func:`computing`."""
    if stays_sparse(vae, len(cells), device):
        return _encode_sparse_with_library(vae, cells, batch_size)
    parts: list[tuple[Tensor, ...]] = []
    for minibatch in minibatches_of(cells, batch_size, device):
        z = vae.encode(minibatch)
        part: tuple[Tensor, ...] = (z.loc, z.scale, minibatch.library_n1.log())
        if vae.config.learns_library:
            library = vae.encode_library(minibatch)
            part = (z.loc, z.scale, library.loc, library.scale)
        parts.append(tuple(tensor.cpu() for tensor in part))
    mean, sd, log_library, *library_sd = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Latents(Normal(mean, sd, validate_args=False), log_library, library_sd[0] if library_sd else None)


def _encode_sparse_with_library(vae: VAE, cells: Cells, batch_size: int | None) -> Latents:
    batch_size = BATCH_SIZE if batch_size is None else batch_size
    check_integer("batch_size", batch_size, minimum=1)
    rows = np.arange(len(cells))
    mean, variance = encode_sparse(vae.z_encoder, cells, rows, batch_size)
    z = Normal(mean, variance.sqrt(), validate_args=False)
    if vae.library_encoder is not None:
        log_library, library_variance = encode_sparse(vae.library_encoder, cells, rows, batch_size)
        return Latents(z, log_library, library_variance.sqrt())
    library_n = cells.library_n if cells.size_factor_n is None else cells.size_factor_n
    return Latents(z, torch.from_numpy(library_n[:, None]).log(), None)


def conditions_at(cells: Cells, rows: np.ndarray | slice, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Codes ``(n, c)`` and continuous covariates ``(n, d)`` of cells, in a batch; None is their own."""
    codes_nc = cells.codes_nc[rows]
    if batch is not None:
        codes_nc = codes_nc.copy()
        codes_nc[:, 0] = batch[rows] if isinstance(batch, np.ndarray) else batch
    continuous_nd = cells.continuous_nd[rows]
    return torch.from_numpy(codes_nc).to(device), torch.from_numpy(continuous_nd).to(device)


def tiles_of(n: int, n_genes: int, n_samples: int) -> Iterator[slice]:
    """Some cells at a time, so that all draws of them fit; an error if those of one cell do not."""
    check_draws(n_samples, n_genes)
    size = min(max(TILE_BYTES // (4 * n_genes * n_samples), 1), 4096)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
