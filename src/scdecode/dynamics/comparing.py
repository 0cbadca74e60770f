"""Two paths beside one another: by how much each gene differs, from when on, and how far the paths are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ConditionTable, LibrarySize, NamesLike, PerPoint, Seed, SpreadLike, Values
from scdecode._utils.notebook import Shown
from scdecode.dynamics.pairs import aligned, difference_table, differences, since
from scdecode.dynamics.routes import Route, read_routes
from scdecode.dynamics.shapes import LEAST_SCORE, MIN_CHANGE
from scdecode.errors import InputError, PointsError, check_number, unknown_name
from scdecode.expression import Decodable
from scdecode.points import PointsLike
from scdecode.pseudocounts import PSEUDOCOUNT
from scdecode.trajectory import SHARE

ALIGNMENTS = ("share", "time")
_SAID = ("batch", "labels", "categorical", "continuous", "library_size")


@dataclass(frozen=True, eq=False)
class Comparison(Shown):
    """Where two paths part; made by :func:`compare`. All differences are log2, the second path over the first."""

    names: tuple[str, str]
    time: np.ndarray  # (n,)
    time_name: str
    genes: tuple[str, ...]
    difference_ng: np.ndarray  # (n, g) float32: of the means
    std_ng: np.ndarray  # (n, g): over the paired draws
    q05_ng: np.ndarray  # (n, g)
    q95_ng: np.ndarray
    table: pd.DataFrame  # a row a gene, the highest score first
    overall: pd.DataFrame  # a row a time
    divergence_time: float  # from which the paths stay farther apart than their cells scatter; NaN: they do not

    @checked
    def trends(self, genes: NamesLike | str | None = None) -> pd.DataFrame:
        """The differences over time as a long table: ``gene``, ``time``, ``difference``, ``std``, ``q05``, ``q95``."""
        names = list(self.genes) if genes is None else [genes] if isinstance(genes, str) else list(genes)
        codes = {gene: i for i, gene in enumerate(self.genes)}
        for name in names:
            if name not in codes:
                raise InputError(unknown_name("genes", name, self.genes, "compared genes"))
        at, n = [codes[name] for name in names], len(self.time)
        arrays = {"difference": self.difference_ng, "std": self.std_ng, "q05": self.q05_ng, "q95": self.q95_ng}
        return pd.DataFrame(
            {
                "gene": pd.Categorical.from_codes(np.repeat(np.arange(len(at)), n), pd.Index(names)),
                "time": np.tile(self.time, len(at)),
                **{name: array[:, at].ravel(order="F") for name, array in arrays.items()},
            }
        )

    def __repr__(self) -> str:
        """One line, as the arrays are long."""
        n_genes = int(self.table["divergence_time"].notna().sum())
        when = "nowhere" if np.isnan(self.divergence_time) else f"at {self.divergence_time:.3g}"
        return (
            f"Comparison: {self.names[1]} over {self.names[0]}, {len(self.time)} times, {n_genes:,} of "
            f"{len(self.genes):,} genes part; the paths part {when} ({self.time_name})"
        )


@checked
def compare(
    model: Decodable,
    path_a: PointsLike,
    path_b: PointsLike = None,
    *,
    kwargs_a: Mapping[str, Values] | None = None,
    kwargs_b: Mapping[str, Values] | None = None,
    names: Annotated[tuple[str, str], "two names, of path_a and path_b"] = ("a", "b"),
    align: str | None = None,
    n_points: int | None = None,
    genes: NamesLike | str | None = None,
    quantity: str = "rate",
    library_size: LibrarySize = None,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    spread: SpreadLike = None,
    n_samples: int | None = None,
    seed: Seed | None = None,
    pseudocount: float = PSEUDOCOUNT,
    min_change: float = MIN_CHANGE,
    least_score: float = LEAST_SCORE,
    max_conditions: int = 100,
) -> Comparison:
    """Compare what the genes do along two paths, or along one path under two conditions.

    The draws of the two paths are paired: a draw has the same place in both tubes, relative to their paths, so that
    what both share is in no error bar.

    Parameters
    ----------
    model
        Whose latent space the paths are in.
    path_a, path_b
        Trajectories of one lineage each, of at least three points; without ``path_b``, the first under two conditions.
    kwargs_a, kwargs_b
        Conditions of one of the two alone: ``batch``, ``labels``, ``categorical``, ``continuous``, ``library_size``;
        those below hold where nothing is said here.
    names
        What the two are called: two names.
    align
        ``"share"``: times are the share of each path's own time that has passed, 0 to 1. ``"time"``: the times of the
        paths, where they overlap. By default the times where both are of the same kind (``time_name``), such as one
        pseudotime, and otherwise the shares.
    n_points
        Times to compare at, evenly spaced; by default as many as the path with more points has. Paths that do not have
        points there are interpolated, by the splines of :func:`gene_dynamics`; conditions of single points are those of
        the nearest point.
    genes, quantity, library_size, batch, labels, categorical, continuous, spread, n_samples, seed, max_conditions
        As for :func:`gene_dynamics`.
    pseudocount, min_change, least_score
        As for :func:`gene_dynamics`; a gene of a lesser score does not part.

    Returns
    -------
    Comparison
        Of which ``table`` has for each gene, the highest score first:

        ``start_difference``, ``end_difference``, ``max_difference``, ``max_time``
            At the ends; the largest in size and its time.
        ``divergence_time``
            From which on, to the end, the difference has one sign and is at least ``min_change``, and 95 % of the draws
            have its sign (q05 above zero, or q95 below); between two times by linear interpolation. NaN where it is not
            so at the end, or the score is below ``least_score``.
        ``std``, ``score``, ``rank``
            Of the largest difference, over the draws; ``|max_difference| / sqrt(std^2 + min_change^2)``; 1 is the
            highest score.

        ``overall`` has for each ``time`` the ``difference``, root mean square over the genes; the ``spread``, root mean
        square of how far cells scatter around either path, or around the one that is no bare line, in log2 (NaN for two
        bare lines); and ``n_genes``, how many
        genes differ by the rule of ``divergence_time``. The paths part, ``Comparison.divergence_time``, where the
        difference exceeds the spread, to the end.

    Raises
    ------
    PointsError
        For what is no path, several lineages, fewer than three points, times that do not overlap.
    ConditionError, InputError
        As for :meth:`scdecode.SCVI.decode`; for paths of different library sizes, which change all genes alike, unless
        the quantity is ``"scale"``.
    """
    check_number("min_change", min_change, 0.0, open_minimum=True)
    check_number("least_score", least_score, 0.0)
    if align is not None and align not in ALIGNMENTS:
        raise InputError(unknown_name("align", align, ALIGNMENTS, "ways to align two paths"))
    common = {
        "batch": batch,
        "labels": labels,
        "categorical": categorical,
        "continuous": continuous,
        "library_size": library_size,
    }
    if path_b is None and not kwargs_a and not kwargs_b:
        raise InputError("path_b: nothing came; another path, or kwargs_b={'batch': ...} of the same, was expected")
    asked = []
    for place, path, own in (("a", path_a, kwargs_a), ("b", path_a if path_b is None else path_b, kwargs_b)):
        for name in own or {}:
            if name not in _SAID:
                raise InputError(unknown_name(f"kwargs_{place}", name, _SAID, "conditions"))
        one = read_routes(
            model,
            path,
            genes=genes,
            quantity=quantity,
            spread=spread,
            n_samples=n_samples,
            seed=seed,
            pseudocount=pseudocount,
            max_conditions=max_conditions,
            **{**common, **(own or {})},
        )
        if len(one.routes) > 1:
            raise PointsError(
                f"path_{place}: {len(one.routes)} lineages came, one was expected; pass one of them, path['name']"
            )
        asked.append(one)
    kinds = {one.time_name for one in asked}
    if align is None:
        align = "time" if len(kinds) == 1 and not kinds & {SHARE, "time"} else "share"
    time_n, route_a, route_b = aligned(asked[0].routes[0], asked[1].routes[0], align, n_points)
    if quantity != "scale":
        _check_libraries(route_a, route_b)
    time_name = asked[0].time_name if align == "time" else "share of each path's time"
    arrays, scatter_n = differences(route_a, route_b)
    table, differs_ng = difference_table(asked[0].genes, time_n, arrays, min_change, least_score)
    difference_n = np.sqrt(np.square(arrays["difference"], dtype=np.float64).mean(axis=1))
    bare = route_a.bare and route_b.bare
    return Comparison(
        names=(str(names[0]), str(names[1])),
        time=time_n,
        time_name=time_name,
        genes=asked[0].genes,
        difference_ng=arrays["difference"],
        std_ng=arrays["std"],
        q05_ng=arrays["q05"],
        q95_ng=arrays["q95"],
        table=table,
        overall=pd.DataFrame(
            {
                "time": time_n,
                "difference": difference_n,
                "spread": np.nan if bare else scatter_n,
                "n_genes": differs_ng.sum(axis=1),
            }
        ),
        divergence_time=np.nan if bare else float(since(time_n, (difference_n - scatter_n)[:, None])[0]),
    )


def _check_libraries(a: Route, b: Route) -> None:
    """Raise :class:`InputError` where one path is of deeper cells: every gene would differ for that alone."""
    size_a, size_b = (np.broadcast_to(route.conditions.library_n, route.time_n.shape) for route in (a, b))
    apart = np.flatnonzero(~np.isclose(size_a, size_b, rtol=1e-5, atol=0.0))
    if len(apart):
        first, second = float(size_a[apart[0]]), float(size_b[apart[0]])
        raise InputError(
            f"library_size: {first:g} came for path_a and {second:g} for path_b, so that each gene differs by the "
            f"library alone by {np.log2(second / first):+.2f} log2; pass one library_size= for both, or "
            "quantity='scale'"
        )
