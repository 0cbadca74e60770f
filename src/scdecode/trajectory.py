"""Paths through the latent space, with the spread of the cells around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import (
    ColumnName,
    NamesLike,
    Neighbours,
    NumbersLike,
    PerPoint,
    PointsOfPath,
    SpreadLike,
    Values,
)
from scdecode._utils.forms import or_as
from scdecode.errors import InputError, PointsError, SupportWarning, unknown_name, warn
from scdecode.joining import WAYS, around_points, cells_of_groups, join, medoid, posterior_of, read_places
from scdecode.latent_path import SHARE, LatentPath
from scdecode.lineages import ALL, Lineage, read_columns, read_lineages
from scdecode.model import SCVI
from scdecode.path_inputs import check_conditions, read_conditions, read_ordered, values_of
from scdecode.path_parts import WithSpread, check_waypoints, read_parts
from scdecode.paths.curves import fit_curve
from scdecode.paths.flows import FieldLike, integrate
from scdecode.paths.tube import shares
from scdecode.points import PlacesLike, PointsLike, read_array

__all__ = ["SHARE", "WAYS", "Trajectory", "medoid"]


@checked
def _between_groups(
    cls: Any,
    model: SCVI,
    adata: AnnData,
    start: Values,
    end: Values,
    n_points: PointsOfPath = 100,
    how: str = "linear",
    *,
    key: ColumnName,
    **options: Any,
) -> Trajectory:
    places = cells_of_groups(model, adata, (start, end), key, ("start", "end"))
    return cls.between(model, *places, n_points, how, **options)


@checked
def _through_groups(
    cls: Any,
    model: SCVI,
    adata: AnnData,
    waypoints: Values,
    n_points: PointsOfPath = 100,
    how: str = "linear",
    *,
    key: ColumnName,
    **options: Any,
) -> Trajectory:
    if not isinstance(waypoints, list | tuple | np.ndarray | pd.Index | pd.Series):
        raise PointsError(f"waypoints: got {waypoints!r}, a list of categories of obs[{key!r}] was expected")
    names = [f"waypoints[{i}]" for i in range(len(waypoints))]
    return cls.through(model, cells_of_groups(model, adata, list(waypoints), key, names), n_points, how, **options)


@checked
def _along_columns(
    cls: Any, model: SCVI, adata: AnnData, pseudotime: Values, weights: Values = None, **options: Any
) -> Trajectory:
    return _along(cls, model, adata, read_columns(adata, pseudotime, weights), options)


def _along(
    cls: type[Trajectory], model: SCVI, adata: AnnData, found: Mapping[str, Lineage], options: dict[str, Any]
) -> Trajectory:
    """Lineages as paths; a single one as a single path, with the name that it has."""
    times = {lineage.time_name for lineage in found.values()}
    made = cls.along_pseudotime(
        posterior_of(model, adata),
        pd.DataFrame({name: lineage.pseudotime_n for name, lineage in found.items()}),
        pd.DataFrame({name: lineage.weight_n for name, lineage in found.items()}),
        # slingshot has a column for each lineage
        **{"time_name": times.pop() if len(times) == 1 else "pseudotime", **options},
    )
    if len(found) > 1:
        return made
    (one,) = made
    return replace(one, lineages=None, origin=made.origin) if one.lineages == (ALL,) else one


def _is_model(first: Any = None, *_: Any, model: Any = None, **__: Any) -> bool:
    return isinstance(model if first is None else first, SCVI)


def _is_named(place: Any) -> bool:
    """Whether a place is named, and no point: a string, or a list of them."""
    return isinstance(place, str) or (isinstance(place, list | tuple) and any(isinstance(one, str) for one in place))


def _has_cells(_model: Any = None, second: Any = None, third: Any = None, *_: Any, **named: Any) -> bool:
    """Whether the cells come before the names of their groups: an AnnData may be a place itself."""
    cells = named.get("adata", second)
    return isinstance(cells, AnnData) and ("adata" in named or "key" in named or _is_named(third))


class Trajectory(LatentPath):
    """Points along a path, in order, with the spread of the cells around each; ``model.decode`` takes it as it is.

    Cells do not lie on the line through a trajectory but all around it, and the decoder is not linear: what it says of
    the bare line is not what it says of the cells, on average, and often two to three times as wrong. So a path is a
    tube: it carries the covariance of the cells around each point, and decoding averages over it.

    Make one by :meth:`from_points`, :meth:`between`, :meth:`through`, :meth:`along_pseudotime`, :meth:`from_lineages`
    or :meth:`flow`. Select lineages and points by ``paths["name"]`` and ``path[10:50]``.
    """

    @classmethod
    @checked
    def from_points(
        cls,
        points: PointsLike,
        time: Values = None,
        *,
        model: SCVI | None = None,
        spread: SpreadLike = None,
        lineages: NamesLike | None = None,
        time_name: str | None = None,
        **conditions: PerPoint,
    ) -> Trajectory:
        """A path through points that are known, in order.

        Parameters
        ----------
        points
            ``(n, k)``, in any form that ``model.decode`` takes; ``(lineages, n, k)`` or a mapping of names to
            ``(n, k)`` for several paths. Of a trajectory all is taken that is not given here.
        time
            Of each point, increasing, ``(n,)`` or ``(lineages, n)``; by default the share of the path's length.
        model
            Whose reference cells tell the spread around the path. Without it, and without a ``spread``, the path is
            the bare line.
        spread
            Of each point: ``(..., n, k, k)`` covariances, ``(..., n, k)`` standard deviations, or one number; False for
            the bare line; True with a model: found among its reference cells, whatever the points have of their own.
        lineages
            Names of the paths, by default ``"path_1"`` and so on; of a mapping or a trajectory, those wanted, in order.
        time_name
            What the time is, for tables and pictures; by default "time".
        **conditions
            ``batch``, ``labels``, ``categorical``, ``continuous``, ``library_size``, as for ``model.decode``, which
            takes them from here where it is given none; arrays have one value a point.

        Raises
        ------
        PointsError
            For points of the wrong width, fewer than two, NaN, times that do not increase, a path without length.
        """
        k = None if model is None else model.config.n_latent
        simplex = model is not None and model.config.latent_distribution == "ln"
        find = model is not None and isinstance(spread, bool | np.bool_) and bool(spread)
        own = read_parts(points, k, time, False if find else spread, lineages, conditions, simplex=simplex)
        z, times, around, several = own.points, own.time, own.spread, own.points.ndim == 3
        if times is None:
            times = np.stack([shares(path) for path in z]) if several else shares(z)
        if around is None and model is not None and spread is not False:
            found = around_points(model, list(z) if several else [z])
            around = found if found is None or several else found[0]
        return cls(
            points=z,
            time=np.array(times, dtype=np.float64),
            spread=None if around is None else around.astype(np.float32),
            conditions=own.conditions,
            origin=f"{z.shape[-2]} points" + (f" on each of {len(z)} paths" if several else ""),
            time_name=time_name or own.time_name or (SHARE if own.time is None else "time"),
            lineages=own.lineages,
        )

    @classmethod
    @or_as(_between_groups, _has_cells)
    @checked
    def between(
        cls,
        model: SCVI,
        start: PointsLike,
        end: PointsLike,
        n_points: PointsOfPath = 100,
        how: str = "linear",
        *,
        spread: WithSpread = True,
        n_neighbours: Neighbours = 15,
        **conditions: PerPoint,
    ) -> Trajectory:
        """A path from one place of the latent space to another.

        With an AnnData in the second place, ``start`` and ``end`` are categories of a column of its ``obs``:
        ``between(model, adata, "HSC", "Ery", key="cell_type", n_points=100, how="linear", ...)``.

        Parameters
        ----------
        model
            Whose latent space it is.
        start, end
            A point, ``(k,)``; a set of cells, ``(m, k)``; or their posterior, ``model.posterior(adata[...])``, which
            knows how far each cell scatters, too. Of categories the posterior of all their cells is taken; a list of
            categories is one set of cells.
        n_points
            Points on the path, both ends included.
        how
            ``"linear"``: the straight line. Between two sets of more than k cells it is the straight path between two
            normal distributions, means and covariances interpolated. ``"graph"``: the shortest path from cell to cell
            over the graph of nearest neighbours among the reference cells, smoothed. ``"geodesic"``: the shortest path
            in the decoder's own metric, kept near the cells (see :func:`scdecode.geometry.geodesic`). The last two
            begin and end at the medoid of a set of cells.
        spread
            Whether to carry the covariance of the cells around the path, found among the reference cells where the
            ends do not tell it; otherwise the line is bare.
        n_neighbours
            Of each cell in the graph.
        **conditions
            ``batch``, ``labels``, ``categorical``, ``continuous``, ``library_size`` as for ``model.decode``: what a
            geodesic is one in, and what decoding takes where it is given none.

        Raises
        ------
        PointsError
            For points of the wrong width, NaN, ends that are the same, or in parts of the graph that do not hang
            together.
        InputError
            For another ``how``, fewer than two points, or a model without reference cells where they are needed.
        ConditionError
            For a condition that changes along a geodesic.

        Examples
        --------
        >>> path = sd.Trajectory.between(model, z[0], z[7])  # doctest: +SKIP
        >>> path = sd.Trajectory.between(model, adata, "HSC", "Ery", key="cell_type")  # doctest: +SKIP
        """
        return cls.through(model, (start, end), n_points, how, spread=spread, n_neighbours=n_neighbours, **conditions)

    @classmethod
    @or_as(_through_groups, _has_cells)
    @checked
    def through(
        cls,
        model: SCVI,
        waypoints: PlacesLike,
        n_points: PointsOfPath = 100,
        how: str = "linear",
        *,
        spread: WithSpread = True,
        n_neighbours: Neighbours = 15,
        **conditions: PerPoint,
    ) -> Trajectory:
        """A path through several places, in order.

        With an AnnData in the second place, the waypoints are categories of a column of its ``obs``:
        ``through(model, adata, ["HSC", "MEP", "Ery"], key="cell_type")``.

        Parameters
        ----------
        waypoints
            At least two, each a point, a set of cells or their posterior, as the ends in :meth:`between`.
        model, n_points, how, spread, n_neighbours, **conditions
            As for :meth:`between`. Points are spaced evenly over the whole path, so that inner waypoints may fall
            between two of them.

        Raises
        ------
        PointsError, InputError, ConditionError
            As :meth:`between`.
        """
        if how not in WAYS:
            raise InputError(unknown_name("how", how, WAYS, "ways"))
        waypoints, names = check_waypoints(waypoints)
        places = read_places(model, waypoints, names)
        own = read_conditions((n_points,), conditions)
        check_conditions(model.schema, n_points, own)  # now, and not when it is decoded
        track = join(model, places, n_points, how, spread=bool(spread), n_neighbours=n_neighbours, conditions=own)
        cells = [len(place) for place in places]
        ends = f"between {cells[0]} and {cells[-1]} cells" if max(cells) > 1 else "between points"
        return cls(
            points=track.points_nk.astype(np.float32),
            time=track.time_n,
            spread=None if track.spread_nkk is None else track.spread_nkk.astype(np.float32),
            conditions=own,
            origin=f"{how}, {n_points} points, {ends}"
            + (f" through {len(cells) - 2} others" if len(cells) > 2 else ""),
            report=track.report,
        )

    @classmethod
    @or_as(_along_columns, _is_model)
    @checked
    def along_pseudotime(
        cls,
        z: PointsLike,
        pseudotime: Values,
        weights: Values = None,
        *,
        n_points: PointsOfPath = 100,
        bandwidth: float | None = None,
        spread: WithSpread = True,
        time_name: str | None = None,
        **conditions: PerPoint,
    ) -> Trajectory:
        """A smooth curve through cells that are ordered by a pseudotime, with the spread of the cells around it.

        With a model in the first place, pseudotime and weights may be names of columns:
        ``along_pseudotime(model, adata, "dpt_pseudotime", weights="leiden", ...)``. Cells whose pseudotime is NaN or
        infinite are then outside of the lineage, as for :meth:`from_lineages`.

        Parameters
        ----------
        z
            The cells: ``model.posterior(adata)``, or latent points ``(n, k)`` in any form that ``model.decode`` takes.
            Of points alone the spread lacks the posterior variance of each cell, and is too small.
        pseudotime
            Of each cell, ``(n,)``; ``(n, lineages)`` where each lineage has its own, without names in the order of the
            weights' columns; any scale. Categories that are numbers count as these. Cells without (NaN, masked) must
            have weight zero.
        weights
            How far each cell belongs to the lineage: lineage weights, fate probabilities, or a mask, ``(n,)``;
            a DataFrame ``(n, lineages)`` for several lineages, which its columns name, or CellRank's ``Lineage``; or
            the name of each cell's lineage, as categories or strings. By default all alike. Whole numbers above one
            are refused, as they may be clusters: pass these as categories.
        n_points
            Points, evenly spaced in pseudotime.
        bandwidth
            Of the kernel, in units of the pseudotime; by default that which is best for cells left out.
        spread
            False for the bare curve.
        time_name
            Of the pseudotime, for tables and pictures; by default that of a Series, or "pseudotime".
        **conditions
            As for :meth:`from_points`.

        Raises
        ------
        PointsError, InputError
            For cells without a pseudotime, weights that are negative or sum to zero, a constant pseudotime, lengths
            that do not fit, too few cells; or (ConditionError) cells that a Series has in another order than ``z``.

        Examples
        --------
        >>> time = adata.obs["dpt_pseudotime"]  # doctest: +SKIP
        >>> path = sd.Trajectory.along_pseudotime(model.posterior(adata), time)  # doctest: +SKIP
        >>> path = sd.Trajectory.along_pseudotime(model, adata, "dpt_pseudotime")  # doctest: +SKIP
        """
        cells = read_ordered(z, pseudotime, weights)
        if cells.variance_nk is None and spread:
            warn(
                "z: latent points came and no posterior, so the spread is that of the cells' means: too small; "
                "pass model.posterior(adata)",
                SupportWarning,
            )
        name = time_name or str(getattr(pseudotime, "name", None) or "pseudotime")
        curves = [
            fit_curve(
                cells.z_nk,
                cells.time.get(lineage, cells.time.get(None)),
                cells.weight.get(lineage, cells.weight.get(None)),
                cells.variance_nk,
                n_points=n_points,
                bandwidth=bandwidth,
                lineage=lineage,
            )
            for lineage in cells.lineages or (None,)
        ]
        points = np.stack([curve.points_nk for curve in curves])
        time = np.stack([curve.time_n for curve in curves])
        around = np.stack([curve.spread_nkk for curve in curves])
        one = cells.lineages is None
        return cls(
            points=(points[0] if one else points).astype(np.float32),
            time=np.asarray(time[0] if one else time, dtype=np.float64),
            spread=(around[0] if one else around).astype(np.float32) if spread else None,
            conditions=read_conditions(time[0].shape if one else time.shape, conditions),
            origin=f"along {name}, {n_points} points, {len(cells.z_nk):,} cells",
            time_name=name,
            lineages=cells.lineages,
            report={"bandwidth": np.array([curve.bandwidth for curve in curves])},
        )

    @classmethod
    @checked
    def from_lineages(
        cls,
        model: SCVI,
        adata: AnnData,
        source: Any = "auto",
        *,
        pseudotime: Values = None,
        weights: Values = None,
        lineages: Values = None,
        n_points: PointsOfPath = 100,
        **options: Any,
    ) -> Trajectory:
        """The lineages that another tool has left in an AnnData, as paths.

        Parameters
        ----------
        model
            Which encodes the cells.
        adata
            Cells, with pseudotimes and weights of Palantir, CellRank, scanpy, scVelo or slingshot.
        source, pseudotime, weights, lineages
            As for :func:`scdecode.lineages.read_lineages`.
        n_points, **options
            As for :meth:`along_pseudotime`.

        Returns
        -------
        Trajectory
            Points ``(lineages, n, k)``; of a single lineage ``(n, k)``, with its name where it has one.

        Raises
        ------
        InputError
            Where nothing is there, or several things, and ``source`` does not say which.

        Examples
        --------
        >>> paths = sd.Trajectory.from_lineages(model, adata, "palantir", lineages=["Ery", "DC"])  # doctest: +SKIP
        >>> paths = sd.Trajectory.from_lineages(model, adata, slingshot)  # doctest: +SKIP
        """
        found = read_lineages(adata, source, pseudotime=pseudotime, weights=weights, lineages=lineages)
        return _along(cls, model, adata, found, {"n_points": n_points, **options})

    @classmethod
    @checked
    def flow(
        cls,
        field: FieldLike,
        z0: PointsLike,
        t: NumbersLike,
        *,
        model: SCVI | None = None,
        method: str = "RK45",
        rtol: float = 1e-5,
        atol: float = 1e-6,
        max_evaluations: int = 100_000,
        lineages: NamesLike | None = None,
        time_name: str = "time",
        **conditions: PerPoint,
    ) -> Trajectory:
        """The paths that points take in a velocity field: of a flow-matching network, a latent ODE, RNA velocity.

        Parameters
        ----------
        field
            dz/dt, a function or torch module of ``(t, z)`` with z ``(m, k)``; see
            :func:`scdecode.paths.flows.integrate`.
        z0
            Where they begin, ``(k,)`` or ``(m, k)``.
        t
            Times of the points on the paths, ``(n,)``; the first is that of ``z0``. Where they fall, it is integrated
            backward, and the path is turned round so that its time grows.
        model
            Whose reference cells tell the spread around each path; without it lines are bare. The spread of many
            paths is that of :meth:`pooled`.
        method, rtol, atol
            Of the solver, scipy's ``solve_ivp``.
        max_evaluations
            After so many evaluations of the field it gives up.
        lineages
            Names of the paths, where several begin.
        time_name, **conditions
            As for :meth:`from_points`.

        Raises
        ------
        PointsError
            For a field that returns another shape, NaN, or grows without bound.
        """
        start = read_array(values_of(z0, "z0"), "z0").astype(np.float64)
        times = read_array(t, "t", strings=False).astype(np.float64)
        if times.ndim != 1 or len(times) < 2:
            raise PointsError(f"t: shape {times.shape} came, two or more times, (n,), were expected")
        options: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol, "max_evaluations": max_evaluations}
        paths = integrate(field, start[None] if start.ndim == 1 else start, times, **options)
        if times[-1] < times[0]:
            paths, times = paths[:, ::-1], times[::-1]
        made = cls.from_points(
            paths[0] if start.ndim == 1 else paths,
            times,
            model=model,
            lineages=lineages,
            time_name=time_name,
            **conditions,
        )
        return replace(made, origin=f"flow of {len(paths):,} points over {len(times)} times")
