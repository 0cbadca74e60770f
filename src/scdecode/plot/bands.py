"""The bands around a trend, one for each named part of the error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData

from scdecode.errors import InputError, unknown_name
from scdecode.plot.reading import dense

BANDS = ("cells", "models", "counts", "parts", "none")
_LAYERS = {"cells": "std", "models": "std_models", "counts": "std_counts"}
_WORDS = {"cells": "the cells’ spread", "models": "between models", "counts": "the count noise"}
_PARTS = ("models", "cells", "counts")  # from what more models would mend to what nothing does


@dataclass(frozen=True, eq=False)
class Band:
    """From where to where, and what it says."""

    low_ng: np.ndarray  # (points, genes)
    high_ng: np.ndarray
    words: str
    alpha: float  # of its face


def bands_of(expression: AnnData, columns: Any, values_ng: np.ndarray, band: str | None) -> list[Band]:
    """The bands to draw, the widest first.

    Parameters
    ----------
    expression
        From ``model.decode``.
    columns
        Of the genes.
    values_ng
        Their mean, ``(points, genes)``.
    band
        One of :data:`BANDS`; None for the cells' and the models', where there are.

    Raises
    ------
    InputError
        For another ``band``, or one that the result does not have.
    """
    there = [part for part in _PARTS if _LAYERS[part] in expression.layers]
    if band is None:
        made = [_cells(expression, columns, values_ng)] if "cells" in there or "q05" in expression.layers else []
        return made + ([_deviation(expression, columns, values_ng, "models", 0.4)] if "models" in there else [])
    if band not in BANDS:
        raise InputError(unknown_name("band", band, BANDS, "bands"))
    if band == "none":
        return []
    if band == "parts" and there:
        total, bands = np.zeros_like(values_ng), []
        for number, part in enumerate(there):  # variances of the parts add up
            total = total + dense(expression.layers[_LAYERS[part]], columns) ** 2
            words = f"± 1 sd: {_WORDS[part]}" if number == 0 else f"and {_WORDS[part]}"
            bands.append(_around(values_ng, np.sqrt(total), words, 0.45 / (1 + number)))
        return bands[::-1]
    if band == "cells" and ("cells" in there or "q05" in expression.layers):
        return [_cells(expression, columns, values_ng)]
    if band not in there:
        lack = "layers of standard deviations" if band == "parts" else f"layer {_LAYERS[band]!r}"
        how = {"models": "decode with sd.Ensemble([...])"}.get(band, "decode a path with its spread")
        raise InputError(f"band: {band!r} came, but the expression has no {lack}; {how}")
    return [_deviation(expression, columns, values_ng, band, 0.22)]


def _cells(expression: AnnData, columns: Any, values_ng: np.ndarray) -> Band:
    if "q05" not in expression.layers or "q95" not in expression.layers:
        return _deviation(expression, columns, values_ng, "cells", 0.22)
    low, high = (dense(expression.layers[name], columns) for name in ("q05", "q95"))
    # a refit has the band of the trend itself in the same layers
    words = expression.uns["scdecode"].get("band") or f"5–95 % of {_WORDS['cells']}"
    return Band(low, high, str(words), 0.16)


def _deviation(expression: AnnData, columns: Any, values_ng: np.ndarray, part: str, alpha: float) -> Band:
    return _around(values_ng, dense(expression.layers[_LAYERS[part]], columns), f"± 1 sd: {_WORDS[part]}", alpha)


def _around(values_ng: np.ndarray, std_ng: np.ndarray, words: str, alpha: float) -> Band:
    # expression is not negative, so neither is its band; a difference may be
    floor = 0.0 if (values_ng >= 0).all() else -np.inf
    return Band(np.maximum(values_ng - std_ng, floor), values_ng + std_ng, words, alpha)


def changed(band: Band, change: Callable[[np.ndarray], np.ndarray]) -> Band:
    """The band in other units, such as logarithms."""
    return Band(change(band.low_ng), change(band.high_ng), band.words, band.alpha)
