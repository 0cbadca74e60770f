"""Generate cells: latent points drawn from the reference cells of a label and a condition, and counts drawn from them.

:func:`generate` is the method of the same name of :class:`scdecode.SCVI`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ConditionTable, LibrarySize, NamesLike, PerPoint, Seed
from scdecode._utils.levels import Category
from scdecode._utils.memory import check_memory
from scdecode.conditions import resolve
from scdecode.config import ModelConfig
from scdecode.decoding import decode_tiles, gene_positions, make_request
from scdecode.devices import choose_device
from scdecode.errors import ConditionError, InputError, check_integer, unknown_name
from scdecode.points import read_points
from scdecode.provenance import make_frame
from scdecode.reference import Reference
from scdecode.results import OnTile, deliver
from scdecode.said import obs_columns
from scdecode.schema import Schema
from scdecode.selection import Asked, draw_rows, read_asked, shares_of
from scdecode.support import Support
from scdecode.vae import VAE

_KINDS = ("batch", "categorical", "continuous")  # of conditions that cells can be decoded in


class Generative(Protocol):
    """What generating needs of a model."""

    config: ModelConfig
    schema: Schema
    vae: VAE

    def reference(self) -> Reference:
        """The training cells that the model keeps, or an error."""

    def support_index(self) -> Support | None:
        """What support is measured against, where there is something."""


@checked
def generate(
    model: Generative,
    n: int,
    *,
    labels: PerPoint = None,
    batch: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    library_size: LibrarySize = None,
    decode_as: ConditionTable = None,
    genes: NamesLike | str | None = None,
    spread: bool = True,
    seed: Seed = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str | None = None,
    on_tile: OnTile | None = None,
) -> AnnData:
    """Generate cells of a label in a condition: counts that the model could have been trained on.

    A cell is drawn in three steps: one of the reference cells (the training cells that the model keeps) that have what
    is asked for; a latent point from its posterior; counts from the likelihood of that point, in the conditions and
    with the library size of the reference cell. No reference cell is drawn more than once more often than another with
    as large a share.

    Parameters
    ----------
    n
        Number of cells.
    labels, batch
        Which reference cells to draw from: a name; a list of names, in proportion to the reference cells that have
        them; a mapping of names to weights, in those proportions. By default all.
    categorical
        A mapping of covariate names to values, each in one of these forms.
    continuous
        A mapping of covariate names to values to decode in, as :meth:`decode` takes it; by default each cell has those
        of its reference cell. No cell has just one value of a continuous covariate, so none is left out by it: it is
        short for ``decode_as={"continuous": ...}``.
    library_size
        In counts of the model's genes (or in units of the size factor): one number, one per cell, or ``"observed"`` for
        the median of the training cells. By default each cell has that of its reference cell, so that generated cells
        are as deep, and as unequally so, as real ones.
    decode_as
        Conditions to decode in, instead of those of the reference cells: a mapping with ``"batch"``, ``"categorical"``
        and ``"continuous"``, each as :meth:`decode` takes it. ``generate(n, labels="B cell", batch="control",
        decode_as={"batch": "stimulated"})`` are B cells of the controls as if stimulated; with the same seed they are
        cell by cell those that it gives without ``decode_as``: the same latent points and library sizes.
    genes
        Names of the genes to return.
    spread
        Whether to draw from the posterior of each reference cell; otherwise its mean is taken, and cells are too much
        alike.
    seed
        Of all draws.
    out
        A ``.h5ad`` or ``.zarr`` to write to, as for :meth:`decode`.
    overwrite
        Whether to replace ``out`` if it is already there; by default that is an error.
    device
        Where to compute; by default the CPU.
    on_tile
        Called with the number of cells of each tile that is done.

    Returns
    -------
    AnnData
        Cells x genes, counts as CSR of int32, as :meth:`decode` returns them. ``obs`` has the label, the conditions and
        the library size of each cell, ``reference_cell``, the row of :meth:`reference_latents` that it was drawn from,
        and the ``support`` of that; ``obsm["latent"]`` the latent points; ``uns["scdecode"]["generated"]`` what was
        asked for, as JSON. :func:`scdecode.decode_arguments` gives what draws the counts again.

    Raises
    ------
    NotTrainedError
        Before the model is trained.
    ConditionError
        For unknown names, for a combination that no reference cell has (the message lists those that some have), for
        impossible library sizes.
    InputError
        For a number of cells, genes or other arguments that are not possible; for a model that keeps no reference
        cells, or too little of them: see :meth:`attach_reference`.
    OutputError
        Where ``out`` cannot be written.
    """
    check_integer("n", n, minimum=1)
    check_memory("n", n, 4 * n * (model.config.n_latent + (model.schema.n_genes if out is None else 8)))
    check_integer("seed", seed, minimum=0)
    n, seed, schema, config = int(n), int(seed), model.schema, model.config
    if not config.has_counts:
        raise InputError(
            f"generate: a model with gene_likelihood={config.gene_likelihood!r} came, which draws no whole numbers; "
            "model.decode(points) gives its mean, and model.distribution(z).sample() draws from it"
        )
    if not isinstance(spread, bool | np.bool_):
        raise InputError(f"spread: {spread!r} came, True or False was expected: it is that of each reference cell")
    positions = gene_positions(schema, genes)
    instead = _read_decode_as(decode_as)
    if continuous is not None:
        if "continuous" in instead:
            raise ConditionError("continuous: it came in decode_as, too, and once was expected; leave one of them out")
        instead = {**instead, "continuous": continuous}
    reference = model.reference()
    asked = read_asked(schema, labels, batch, categorical)
    label_matters = config.dispersion == "gene-label"
    if reference.codes_rc is None:
        _check_latents_suffice(schema, asked, instead, library_size, spread=bool(spread), label_matters=label_matters)
    shares_r = shares_of(schema, reference, asked)
    generator = np.random.default_rng([seed, 3])  # of its own: 0 to 2 are those of training
    row_n = draw_rows(reference, asked, shares_r, n, generator)
    latent_nk = _draw_latents(reference, row_n, config, generator, spread=bool(spread))
    support = model.support_index()
    assert support is not None, "there are reference cells"
    points = read_points(
        pd.DataFrame(latent_nk, index=[f"generated_{i}" for i in range(n)]),
        config.n_latent,
        simplex=config.latent_distribution == "ln",
    )
    conditions = resolve(
        schema,
        n,
        **_own_conditions(schema, reference, row_n, instead, label_matters=label_matters),
        library_size=_library_sizes(reference, row_n) if library_size is None else library_size,
        label_matters=label_matters,
    )
    request = make_request(
        "counts", points, schema.n_genes, genes=positions, n_samples=None, seed=seed, chunk_size=None
    )
    # that of the reference cells: draws from a posterior lie farther from all cells than the posterior means do
    drawn_r, place_n = np.unique(row_n, return_inverse=True)
    support_n = support.percentile(torch.from_numpy(reference.latent_rk[drawn_r]))[place_n.reshape(-1)]
    frame = make_frame(schema, points, conditions, request, support_n)
    label_column = obs_columns(schema)[1 + len(schema.categorical)]
    if label_column is not None and label_column not in frame.obs and reference.codes_rc is not None:
        assert schema.labels is not None, "its column has a name"
        label_n = reference.codes_rc[row_n, -1]
        frame.obs.insert(0, label_column, pd.Categorical.from_codes(label_n, categories=schema.labels.names))
    frame.obs["reference_cell"] = row_n
    frame.uns["scdecode"]["generated"] = json.dumps(
        {
            "n": n,
            **{a.place: a.again() for a in asked},
            "library_size": "reference cells" if library_size is None else "given",
            "decode_as": sorted(instead),
            "spread": bool(spread),
            "seed": seed,
            "n_reference_cells": int((shares_r > 0).sum()),
        }
    )
    tiles = decode_tiles(model.vae, points, conditions, request, choose_device(device))
    return deliver(tiles, frame, out, on_tile, overwrite=overwrite, title="generating", unit="cells")


# -- what was asked for ------------------------------------------------------------------------------------------------


def _read_decode_as(decode_as: Any) -> dict[str, Any]:
    if decode_as is None:
        return {}
    if not isinstance(decode_as, Mapping):
        raise ConditionError(f"decode_as: {decode_as!r} came, a mapping such as {{'batch': ...}} was expected")
    for key in decode_as:
        if key not in _KINDS:
            raise ConditionError(unknown_name("decode_as", key, _KINDS, "kinds of conditions"))
    return {key: value for key, value in decode_as.items() if value is not None}


def _check_latents_suffice(
    schema: Schema,
    asked: list[Asked],
    instead: dict[str, Any],
    library_size: Any,
    *,
    spread: bool,
    label_matters: bool,
) -> None:
    """Raise :class:`InputError` where latent points of the reference cells, and nothing else, are too little."""
    needed = [f"which cells have {a.place}={a.again()!r}" for a in asked]
    if spread:
        needed.append("their posterior spread (or pass spread=False)")
    if library_size is None:
        needed.append("their library sizes (or pass library_size=...)")
    levels = {"batch": schema.batch} | {f"categorical[{c.key!r}]": c for c in schema.categorical}
    unsaid = [name for name, category in levels.items() if category is not None and len(category.names) > 1]
    unsaid += [f"continuous[{key!r}]" for key in schema.continuous]
    said = {f"{kind}[{key!r}]" for kind in _KINDS[1:] for key in _keys(instead.get(kind))} | set(instead)
    needed += [f"their {name} (or pass decode_as=...)" for name in unsaid if name not in said]
    if label_matters and schema.n_labels > 1:
        needed.append("their labels")
    if needed:
        raise InputError(
            f"generate: this model keeps latent points of its reference cells and nothing else, while this needs "
            f"{'; '.join(needed)}; call model.attach_reference(adata) with the cells, their counts and columns"
        )


def _keys(value: Any) -> Iterable[Any]:
    return value if isinstance(value, Mapping | pd.DataFrame) else ()


# -- drawing -----------------------------------------------------------------------------------------------------------


def _draw_latents(
    reference: Reference, row_n: np.ndarray, config: ModelConfig, generator: np.random.Generator, *, spread: bool
) -> np.ndarray:
    """Latent points of reference cells, ``(n, k)`` float32: draws from their posteriors, or posterior means."""
    if not spread:
        return reference.latent_rk[row_n]
    assert reference.mean_rk is not None, "it was checked"
    assert reference.variance_rk is not None, "it is there with the mean"
    noise_nk = generator.standard_normal((len(row_n), config.n_latent), dtype=np.float32)
    drawn_nk = reference.mean_rk[row_n] + np.sqrt(reference.variance_rk[row_n]) * noise_nk
    if config.latent_distribution == "ln":
        return torch.softmax(torch.from_numpy(drawn_nk), dim=-1).numpy()
    return drawn_nk


def _library_sizes(reference: Reference, row_n: np.ndarray) -> np.ndarray:
    assert reference.library_r is not None, "it was checked"
    return reference.library_r[row_n]


def _own_conditions(
    schema: Schema, reference: Reference, row_n: np.ndarray, instead: dict[str, Any], *, label_matters: bool
) -> dict[str, Any]:
    """The conditions of reference cells, as :func:`resolve` takes them, but for those to decode in instead."""
    if reference.codes_rc is None or reference.continuous_rd is None:
        return dict(instead)
    codes_nc, continuous_nd = reference.codes_rc[row_n], reference.continuous_rd[row_n]

    def names(category: Category, column: int) -> np.ndarray:
        return np.array(category.names, dtype=object)[codes_nc[:, column]]

    own: dict[str, Any] = {
        "batch": None if schema.batch is None else names(schema.batch, 0),
        "labels": names(schema.labels, -1) if label_matters and schema.labels is not None else None,
    }
    mappings = {
        "categorical": {c.key: names(c, 1 + j) for j, c in enumerate(schema.categorical)},
        "continuous": {key: continuous_nd[:, j] for j, key in enumerate(schema.continuous)},
    }
    for kind, mapping in mappings.items():
        given = instead.get(kind, {})
        given = {str(key): given[key] for key in given.columns} if isinstance(given, pd.DataFrame) else given
        # what is no mapping goes on as it came, to be refused
        own[kind] = {**mapping, **given} if isinstance(given, Mapping) else given
    return own | ({"batch": instead["batch"]} if "batch" in instead else {})
