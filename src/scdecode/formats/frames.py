"""Tables of pandas that a pickle held, read without pandas: the history of a training.

A DataFrame is kept as :class:`Captured`: its manager has blocks of columns of one dtype, and two axes, the names of the
columns and the index. Where the parts are not as pandas 1 to 3 write them, there is no answer, rather than an error:
a model without its history is still a model.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scdecode.formats.pickles import Captured

_MOST_NUMBERS = 10_000_000  # in a whole history: a column has a place for each epoch that any column has


@dataclass(frozen=True, eq=False)
class _Table:
    columns: list[str] | None  # None where the names cannot be told
    index: list[Any] | None
    index_name: Any
    values: list[np.ndarray[Any, Any]]  # of each column


def frame_of(captured: Any) -> dict[str, np.ndarray[Any, Any]] | None:
    """The columns of a captured DataFrame by name, or None where they cannot be told."""
    table = _table_of(captured)
    if table is None or table.columns is None:
        return None
    return dict(zip(table.columns, table.values, strict=True))


def history_of(value: Any) -> dict[str, list[float]]:
    """The history of a training: the numbers of each name, one for each epoch that any name has, NaN where it has none.

    Parameters
    ----------
    value
        As scvi-tools keeps it: a dict of DataFrames with one column and the epochs as index, or of lists. What is
        otherwise is left out.
    """
    series: dict[str, dict[int, float]] = {}
    for name, entry in value.items() if isinstance(value, Mapping) else ():
        found = _series_of(entry)
        if isinstance(name, str) and found is not None:
            series[name] = found
    epochs = sorted({epoch for found in series.values() for epoch in found})
    if len(epochs) * len(series) > _MOST_NUMBERS:
        return {}
    return {name: [found.get(epoch, float("nan")) for epoch in epochs] for name, found in series.items()}


def _series_of(entry: Any) -> dict[int, float] | None:
    """Epochs and numbers of one entry of a history."""
    if isinstance(entry, list | np.ndarray):
        values, index = entry, None
    else:
        table = _table_of(entry)
        if table is None or len(table.values) != 1 or table.index_name not in (None, "epoch"):
            return None
        values, index = table.values[0], table.index
    if isinstance(values, np.ndarray) and values.ndim != 1:
        return None
    floats = [_float_of(item) for item in values]
    epochs = list(range(len(floats))) if index is None else index
    if not all(isinstance(epoch, numbers.Integral) for epoch in epochs) or len(set(epochs)) != len(floats):
        return None
    column: dict[int, float] = {}
    for epoch, number in zip(epochs, floats, strict=True):
        if number is None:
            return None
        column[int(epoch)] = number
    return column


def _float_of(item: Any) -> float | None:
    """A number, NaN for nothing, or None for what is no number."""
    if item is None:
        return float("nan")
    if isinstance(item, torch.Tensor | np.ndarray):
        of_numbers = item.dtype.kind in "biuf" if isinstance(item, np.ndarray) else not item.is_complex()
        if not of_numbers or len(item.shape) > 1 or max(item.shape, default=1) != 1:
            return None
        return float(item.item())
    if isinstance(item, numbers.Real | np.bool_):
        try:
            return float(item)
        except OverflowError:  # a whole number beyond any float
            return None
    return None


def _table_of(captured: Any) -> _Table | None:
    if not isinstance(captured, Captured) or captured.name not in ("pandas.core.frame.DataFrame", "pandas.DataFrame"):
        return None
    state = captured.state
    manager = state.get("_mgr", state.get("_data")) if isinstance(state, dict) else None
    if not isinstance(manager, Captured) or not manager.name.endswith(".BlockManager"):
        return None
    blocks, axes = _blocks_of(manager)
    if not isinstance(axes, list | tuple) or len(axes) != 2:
        return None
    rows: dict[int, np.ndarray[Any, Any]] = {}
    for values_cn, places in blocks:
        values_cn = _array_of(values_cn)
        if isinstance(places, slice):
            places = _range_of(places.start, places.stop, places.step, 1 if values_cn is None else len(values_cn))
        elif isinstance(places, np.ndarray) and places.ndim == 1 and places.dtype.kind == "i":
            places = places.tolist()
        else:
            return None
        if values_cn is None or places is None:
            return None
        if values_cn.ndim == 1 and len(places) == 1:  # one column of an extension type
            values_cn = values_cn[None]
        if values_cn.ndim != 2 or len(values_cn) != len(places):
            return None
        rows.update(zip(places, values_cn, strict=True))
    n_rows = {len(values_n) for values_n in rows.values()}
    if sorted(rows) != list(range(len(rows))) or len(n_rows) > 1:
        return None
    names, index = _index_of(axes[0], len(rows)), _index_of(axes[1], max(n_rows, default=0))
    columns = None
    if names is not None and all(isinstance(name, str) for name in names) and len(set(names)) == len(rows):
        columns = [str(name) for name in names]
    if index is not None and n_rows and len(index) not in n_rows:
        return None
    if index is None and isinstance(axes[1], Captured) and rows:
        return None  # rows whose order is not known
    name = _args_of(axes[1])[1].get("name") if index is not None else None
    return _Table(columns, index, name if isinstance(name, str) else None, [rows[i] for i in range(len(rows))])


def _blocks_of(manager: Captured) -> tuple[list[tuple[Any, Any]], Any]:
    """Values and places of each block, and the axes."""
    if len(_args_of(manager)) == 2:  # since pandas 1.3
        blocks, axes = _args_of(manager)
        if not isinstance(blocks, tuple) or not all(isinstance(block, Captured) for block in blocks):
            return [], None
        parts = [_args_of(block) for block in blocks]
        if any(len(part) != 3 for part in parts):
            return [], None
        return [(part[0], part[1]) for part in parts], axes
    state = manager.state
    newest = (
        state[3].get("0.14.1") if isinstance(state, tuple) and len(state) == 4 and isinstance(state[3], dict) else None
    )
    listed = newest.get("blocks") if isinstance(newest, dict) else None
    if not isinstance(newest, dict) or not isinstance(listed, list) or not all(isinstance(b, dict) for b in listed):
        return [], None
    return [(block.get("values"), block.get("mgr_locs")) for block in listed], newest.get("axes")


def _args_of(value: Any) -> tuple[Any, ...]:
    return value.args if isinstance(value, Captured) and isinstance(value.args, tuple) else ()


def _index_of(axis: Any, most: int) -> list[Any] | None:
    """The labels of an axis."""
    args = _args_of(axis)
    if len(args) != 2 or not axis.name.endswith("._new_Index") or not isinstance(args[1], dict):
        return None
    parts = args[1]
    if "start" in parts:
        return _range_of(parts["start"], parts.get("stop"), parts.get("step"), most)
    labels_n = _array_of(parts.get("data"))
    return labels_n.tolist() if labels_n is not None and labels_n.ndim == 1 else None


def _range_of(start: Any, stop: Any, step: Any, most: int) -> list[int] | None:
    if (
        not all(isinstance(part, numbers.Integral) and abs(int(part)) < 2**53 for part in (start, stop, step))
        or step == 0
    ):
        return None
    places = range(int(start), int(stop), int(step))
    return list(places) if len(places) <= most else None


def _array_of(values: Any) -> np.ndarray[Any, Any] | None:
    """The numpy array, or that within one of pandas' extension arrays."""
    if isinstance(values, Captured) and values.name.endswith(".__pyx_unpickle_NDArrayBacked"):
        state = values.state if isinstance(values.state, tuple) else ()
        arrays = [part for part in state if isinstance(part, np.ndarray)]
        args = _args_of(values)
        coded = bool(args) and isinstance(args[0], Captured) and args[0].name.endswith(".Categorical")
        return arrays[0] if len(arrays) == 1 and arrays[0].ndim and not coded else None
    return values if isinstance(values, np.ndarray) and values.ndim else None
