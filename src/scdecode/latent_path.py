"""The points of one path or of several, with what is known of each point: named, sliced, tabulated, saved."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from scdecode._utils.checks import checked
from scdecode._utils.notebook import Shown
from scdecode.errors import InputError, PointsError, SupportWarning, shown, unknown_name, warn
from scdecode.formats.path_files import read_path_file, write_path_file
from scdecode.path_inputs import part_of, shared_conditions
from scdecode.paths.tube import moments
from scdecode.said import AVERAGE

SHARE = "share of the path"
"""What the time of a path is that was not made of times: from 0 to 1."""


class _NoSuchLineageError(InputError, IndexError):
    """A lineage is asked for by a number above that of the last."""


@checked
@dataclass(frozen=True, eq=False)
class LatentPath(Shown):
    """Points along one path or along several, in order, with the spread of the cells around each."""

    points: np.ndarray
    """Where the path runs: ``(n, k)``, or ``(lineages, n, k)`` for several of as many points each; float32."""
    time: np.ndarray
    """The time of each point, increasing, ``(n,)`` or ``(lineages, n)``: a share of the length, or a pseudotime."""
    spread: np.ndarray | None = None
    """Covariance of the cells around each point, ``(..., n, k, k)`` float32: of their means, and their mean posterior
    variance. None: a bare line."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of decode that hold where none are given there: ``batch``, ``labels``, ``categorical``,
    ``continuous``, ``library_size``; names or numbers, or arrays of one a point."""
    origin: str = "points"
    """How it was made, in words."""
    time_name: str = SHARE
    """What the time is."""
    lineages: tuple[str, ...] | None = None
    """Names of the paths if there are several; of a single path, ``(n, k)``, one name or None."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """What the making of it told: of a geodesic ``length``, ``straight_length``, ``ratio``, ``energy``,
    ``converged``; of a curve the ``bandwidth``."""

    def __post_init__(self) -> None:
        """Check that shapes fit; that time goes on."""
        shape = self.points.shape
        if self.points.ndim not in (2, 3) or shape[-2] < 2:
            raise PointsError(
                f"points: shape {shape} came, (n, k) or (lineages, n, k) was expected, with n of at least 2"
            )
        if self.time.shape != shape[:-1]:
            raise PointsError(f"time: shape {self.time.shape} came, one number a point, {shape[:-1]}, was expected")
        if not (np.isfinite(self.time).all() and (np.diff(self.time, axis=-1) > 0).all()):
            raise PointsError("time: it must increase from point to point, without NaN; sort the points by their time")
        if self.spread is not None and self.spread.shape != (*shape, shape[-1]):
            raise PointsError(
                f"spread: shape {self.spread.shape} came, covariances {(*shape, shape[-1])} were expected"
            )
        if self.lineages is None and self.is_several:
            raise PointsError(f"lineages: None came for points of shape {shape}; a name a path was expected")
        n_paths = shape[0] if self.is_several else 1
        if self.lineages is not None and (len(self.lineages) != n_paths or len(set(self.lineages)) < n_paths):
            raise PointsError(f"lineages: {list(self.lineages)} came for {n_paths} paths; a name each was expected")

    @property
    def is_several(self) -> bool:
        """Whether there are several paths, ``(lineages, n, k)``, be it that there is one of them."""
        return self.points.ndim == 3

    def __len__(self) -> int:
        """Points, of all lineages."""
        return int(np.prod(self.points.shape[:-1]))

    def __repr__(self) -> str:
        """One line, as the arrays are long."""
        several = f", {self.points.shape[0]} lineages" if self.is_several else ""
        return f"Trajectory: {self.origin}{several}, {'with' if self.spread is not None else 'without'} spread"

    def __iter__(self) -> Iterator[Self]:
        """The lineages, one by one; of a single path that path."""
        return (self._lineage(i) for i in range(len(self.points))) if self.is_several else iter([self])

    def __contains__(self, name: object) -> bool:
        """Whether a lineage has this name."""
        return name in (self.lineages or ())

    def __getitem__(self, key: Any) -> Self:
        """Select lineages, points, or both, as of the array of points.

        Parameters
        ----------
        key
            Of several lineages: a name or a number for one of them, a list of names, a slice or a mask for some; of a
            single path: a slice, a mask or positions of points, in order. Both: ``paths["Ery", 10:50]``,
            ``paths[:, mask]``. Each point keeps its time.

        Raises
        ------
        InputError
            For what selects no lineage or fewer than two points, points in another order, or a number beside lineages
            whose names are numbers.

        Examples
        --------
        >>> import numpy as np
        >>> import scdecode as sd
        >>> paths = sd.Trajectory.from_points(np.random.default_rng(0).normal(size=(2, 9, 4)), lineages=["a", "b"])
        >>> paths["b", 2:7].points.shape
        (5, 4)
        """
        first, *rest = key if isinstance(key, tuple) else (key,)
        if len(rest) > (1 if self.is_several or isinstance(first, str) else 0):
            raise InputError(f"path[...]: got {len(key)} parts, lineages and points were expected, path['name', 10:50]")
        if not self.is_several:
            if not isinstance(first, str):
                return self._points_at(first)
            if first not in self:
                raise InputError(
                    f"lineage: got {first!r}, but this is a single path"
                    + (f", {self.lineages[0]!r}" if self.lineages else " without a name")
                    + "; select its points by path[10:50]"
                )
            found = self
        else:
            found = self._lineage(self._position(first)) if _is_one(first) else self._lineages_at(first)
        return found._points_at(rest[0]) if rest else found

    def _position(self, lineage: Any) -> int:
        """Number of a lineage by its name or number."""
        names = self.lineages or ()
        if isinstance(lineage, str):
            if lineage not in names:
                raise InputError(unknown_name("lineage", lineage, names, "lineages"))
            return names.index(lineage)
        number = operator.index(lineage)
        if not -len(names) <= number < len(names):
            raise _NoSuchLineageError(f"lineage: got {number}, but there are {len(names)}: {list(names)}")
        if str(number) in names and names[number] != str(number):
            raise InputError(
                f"lineage: got {number}, which is the number of lineage {names[number]!r} and the name of another; "
                f"pass a name: path[{str(number)!r}] or path[{names[number]!r}]"
            )
        return number % len(names)

    def _lineage(self, at: int) -> Self:
        """The single path at a position."""
        assert self.lineages is not None, "several paths have names"
        name = self.lineages[at]
        return self._part(at, (name,), f"{self.origin}, {name}")

    def _lineages_at(self, key: Any) -> Self:
        """Some of several lineages, in the order asked for."""
        names = self.lineages or ()
        if isinstance(key, slice):
            at = _sliced(key, len(names))
        else:
            parts = key if isinstance(key, list | tuple) else _as_array(key)
            if any(isinstance(part, str) for part in parts):
                at = [self._position(part) for part in parts]
            else:
                at = _positions(_as_array(key), len(names), "lineages", "; of the points of each: path[:, 10:50]")
        if not at:
            raise InputError(f"path[...]: no lineage is left; at least one of {list(names)} was expected")
        return self._part(at, tuple(names[i] for i in at), self.origin)

    def _part(self, at: int | list[int], names: tuple[str, ...], origin: str) -> Self:
        """One lineage, or some."""
        n_lineages = len(self.points)
        return replace(
            self,
            points=self.points[at],
            time=self.time[at],
            spread=None if self.spread is None else self.spread[at],
            conditions=part_of(self.conditions, at, n_lineages),
            lineages=names,
            origin=origin,
            report=part_of(self.report, at, n_lineages),
        )

    def _points_at(self, key: Any) -> Self:
        """Some of the points of each lineage, in order."""
        n = self.points.shape[-2]
        if isinstance(key, slice):
            at = _sliced(key, n)
        elif _is_one(key):
            raise InputError(f"lineage: {key!r} came, but this is a single path; its points are path.points")
        else:
            at = _positions(_as_array(key), n, "points", "")
        if len(at) < 2:
            raise InputError(f"path[...]: {len(at)} of {n} points are left, two or more were expected")
        if not all(one < other for one, other in pairwise(at)):
            raise InputError(
                "path[...]: points in another order or twice, but the time of a path increases; to turn it round: "
                "Trajectory.from_points(path.points[::-1], spread=path.spread[::-1])"
            )
        return replace(
            self,
            points=self.points[..., at, :],
            time=self.time[..., at],
            spread=None if self.spread is None else self.spread[..., at, :, :],
            conditions=_points_of(self.conditions, at),
            origin=f"{self.origin}, {len(at)} of {n} points",
        )

    def pooled(self) -> Self:
        """Several paths of the same times as one: their mean, and as spread their covariance and their mean spread.

        Raises
        ------
        PointsError
            For a single path, or paths of other times.
        """
        if not self.is_several or len(self.points) < 2:
            raise PointsError("pooled: a single path came, several lineages were expected")
        if not np.allclose(self.time, self.time[0]):
            raise PointsError("pooled: the lineages have other times; paths of the same times were expected")
        n, k = len(self.points), self.points.shape[-1]
        if n <= k and self.spread is None:
            message = f"pooled: {n} paths came, more than {k} tell a covariance of full rank; the spread is too small"
            warn(message, SupportWarning)
        mean, spread = moments(self.points, self.spread)
        return replace(
            self,
            points=mean.astype(np.float32),
            time=self.time[0],
            spread=spread.astype(np.float32),
            conditions=shared_conditions(self.conditions),
            lineages=None,
            origin=f"{self.origin}, pooled",
        )

    def to_df(self) -> pd.DataFrame:
        """The points as a table.

        Returns
        -------
        DataFrame
            A row for each point, lineage by lineage: ``lineage``, if it has a name; ``time``; a column for each
            condition that the path carries, by the name of the covariate (``"average"`` for a list or weights); and
            ``latent_0`` and so on. The spread is not in it.

        Examples
        --------
        >>> import numpy as np
        >>> import scdecode as sd
        >>> list(sd.Trajectory.from_points(np.eye(3)[:2], batch="b").to_df().columns)
        ['time', 'batch', 'latent_0', 'latent_1', 'latent_2']
        """
        n, k = self.points.shape[-2:]
        columns: dict[str, Any] = {}
        if self.lineages is not None:
            columns["lineage"] = pd.Categorical(np.repeat(self.lineages, n), categories=list(self.lineages))
        columns["time"] = self.time.reshape(-1)
        for name, value in self.conditions.items():
            own = value if name in ("categorical", "continuous") and isinstance(value, Mapping) else {name: value}
            for key, one in own.items():
                column = f"condition_{key}" if key in columns or str(key).startswith("latent_") else str(key)
                averaged = isinstance(one, Mapping | list | tuple | set | frozenset | range)
                columns[column] = one.reshape(-1) if isinstance(one, np.ndarray) else AVERAGE if averaged else one
        z = self.points.reshape(-1, k)
        return pd.DataFrame(columns | {f"latent_{i}": z[:, i] for i in range(k)})

    @checked
    def save(self, file: str | Path, *, overwrite: bool = False) -> None:
        """Write the path to a file, with its times, spread, conditions and names.

        Parameters
        ----------
        file
            A name that ends in ``.safetensors``.
        overwrite
            Whether to replace a file that is there.

        Raises
        ------
        InputError
            For another ending, and conditions that are no names and no numbers.
        OutputError
            If the file is there, or cannot be written.

        Examples
        --------
        >>> path.save("erythroid.safetensors")  # doctest: +SKIP
        >>> path = sd.Trajectory.load("erythroid.safetensors")  # doctest: +SKIP
        """
        write_path_file(file, {name: getattr(self, name) for name in _SAVED}, overwrite=overwrite)

    @classmethod
    @checked
    def load(cls, file: str | Path) -> Self:
        """Read a path that :meth:`save` wrote.

        Parameters
        ----------
        file
            The file.

        Raises
        ------
        InputError
            If there is no such file.
        FormatError
            If it is no file of a path, was truncated or edited, or a later scdecode wrote it.
        """
        return read_path_file(file, lambda found: cls(**found), _SAVED)


_SAVED = ("points", "time", "spread", "conditions", "origin", "time_name", "lineages", "report")


def _is_one(key: Any) -> bool:
    """Whether a key names or numbers one thing."""
    if isinstance(key, str):
        return True
    return isinstance(key, int | np.integer) and not isinstance(key, bool)


def _as_array(key: Any) -> np.ndarray:
    array = np.asarray(key)
    if array.ndim != 1 or array.dtype.kind not in "biu" or not len(array):
        raise InputError(
            f"path[...]: got {type(key).__name__} of shape {array.shape} and type {array.dtype}; a slice, a mask or "
            "positions were expected, or names of lineages"
        )
    return array


def _sliced(key: slice, n: int) -> list[int]:
    """The positions of ``n`` that a slice selects."""
    try:
        return list(range(n))[key]
    except (TypeError, ValueError) as error:  # names or fractions as its ends, a step of zero
        raise InputError(
            f"path[...]: got {shown(key)} ({error}), expected a slice of whole numbers, such as path[10:50]; of times: "
            "path[(path.time >= first) & (path.time <= last)]"
        ) from error


def _positions(array: np.ndarray, n: int, what: str, hint: str) -> list[int]:
    """Positions of a mask, or of positions that may count from the end."""
    if array.dtype.kind == "b":
        if len(array) != n:
            raise InputError(f"path[...]: got a mask of {len(array)} for {n} {what}{hint}")
        return [int(i) for i in np.flatnonzero(array)]
    if (array >= n).any() or (array < -n).any():
        raise InputError(f"path[...]: got positions up to {array.max()} for {n} {what}{hint}")
    return [int(i) % n for i in array]


def _points_of(conditions: Any, at: list[int]) -> Any:
    """The conditions of some of the points: of arrays, which have one value a point, these."""
    if isinstance(conditions, Mapping):
        return {key: _points_of(value, at) for key, value in conditions.items()}
    return conditions[..., at] if isinstance(conditions, np.ndarray) else conditions
