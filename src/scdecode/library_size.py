"""What the user said of the library size -> counts (or size factors), one for all points or one per point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from scdecode._utils.names import check_names
from scdecode.errors import ConditionError, ConditionWarning, got, listing, warn
from scdecode.schema import Schema

DEFAULT_LIBRARY = 1e4
"""Counts of the cell that is decoded, unless said otherwise: the answer is then in counts per ten thousand."""


def read_library_size(
    schema: Schema, n_points: int, library_size: Any, point_names: pd.Index | None = None
) -> np.ndarray:
    """Library sizes, ``(1,)`` or ``(n,)`` float32."""
    if library_size is None and schema.columns.size_factor_key is None:
        return np.array([DEFAULT_LIBRARY], dtype=np.float32)
    if library_size is None or isinstance(library_size, str):
        if library_size not in (None, "observed"):
            hint = "; 'latent' is for get_normalized_expression" if library_size == "latent" else ""
            raise ConditionError(
                f"library_size: {library_size!r} came, a number, an array or 'observed' was expected{hint}"
            )
        return np.array([_median(schema)], dtype=np.float32)
    check_names("library_size", library_size, point_names)
    if isinstance(library_size, torch.Tensor):
        library_size = library_size.detach().cpu().numpy()
    try:
        if isinstance(library_size, np.ma.MaskedArray):
            library_size = np.ma.filled(library_size.astype(np.float64), np.nan)  # what is masked is missing
        # by way of objects, as complex numbers and dates would pass for numbers
        sizes = np.asarray(library_size, dtype=object).astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConditionError(f"library_size: got {got(library_size)}, expected numbers") from error
    if sizes.shape not in ((), (1,), (n_points,), (n_points, 1)):
        raise ConditionError(
            f"library_size: an array of shape {sizes.shape} came, one number or one per point, ({n_points},), was "
            "expected"
        )
    sizes = sizes.reshape(-1)
    with np.errstate(over="ignore", under="ignore"):  # what float32 cannot hold becomes infinite or 0, and is refused
        rounded = sizes.astype(np.float32)
    bad = sizes[~(np.isfinite(rounded) & (rounded > 0))]
    if len(bad):
        raise ConditionError(f"library_size: {listing(bad.tolist(), 3)} came, positive finite numbers were expected")
    _warn_of_strange_library(schema, sizes)
    return rounded


def _median(schema: Schema) -> float:
    """The training cells' median of what the library size is in this model."""
    key = schema.columns.size_factor_key
    median = schema.median_library if key is None else schema.median_size_factor
    if median is None:
        unit = "counts" if key is None else f"the units of the size factor {key!r}"
        raise ConditionError(
            f"library_size: the median of the training cells was asked for, and this model keeps none of them (files "
            f"of scvi-tools have none); pass a number, in {unit}, or call model.attach_reference(adata) once"
        )
    return median


def _warn_of_strange_library(schema: Schema, sizes: np.ndarray) -> None:
    if schema.columns.size_factor_key is None:
        if len(sizes) and sizes.max() < 20:
            warn(
                f"library_size: {sizes.max():g} is taken as counts, and looks like the logarithm of a library size; "
                f"if it is one, pass its exponential, {np.exp(sizes.max()):,.0f}",
                ConditionWarning,
            )
        return
    if schema.max_size_factor is None or schema.median_size_factor is None:
        return  # nobody can tell what is usual
    if sizes.max() > 10 * schema.max_size_factor:
        warn(
            f"library_size: {sizes.max():g} came, and this model was set up with size factors (median "
            f"{schema.median_size_factor:g}, largest {schema.max_size_factor:g}); pass one in those units",
            ConditionWarning,
        )
