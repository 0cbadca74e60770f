"""Two routes walked side by side, draw by draw: their common times, and how far their genes are apart there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from scdecode.decoding import QUANTILES, summary
from scdecode.dynamics.routes import LEAST_POINTS, Route, at_points
from scdecode.dynamics.shapes import scores
from scdecode.errors import PointsError, check_integer
from scdecode.kernels.threads import own_threads, side_by_side

_PIECE = 4  # points that a thread takes, at least


def aligned(a: Route, b: Route, align: str, n_points: int | None) -> tuple[np.ndarray, Route, Route]:
    """Both routes at common times, and those."""
    if n_points is not None:
        check_integer("n_points", n_points, minimum=LEAST_POINTS)
    n = max(len(a.time_n), len(b.time_n)) if n_points is None else int(n_points)
    if align == "share":
        shares = [(r.time_n - r.time_n[0]) / (r.time_n[-1] - r.time_n[0]) for r in (a, b)]
        same = n_points is None and np.array_equal(*shares)
        time_n = shares[0] if same else np.linspace(0.0, 1.0, n)
        own = [r.time_n[0] + time_n * (r.time_n[-1] - r.time_n[0]) for r in (a, b)]
        return time_n, a if same else at_times(a, own[0]), b if same else at_times(b, own[1])
    first, last = max(a.time_n[0], b.time_n[0]), min(a.time_n[-1], b.time_n[-1])
    if not first < last:
        raise PointsError(
            f"path_b: its times, {b.time_n[0]:g} to {b.time_n[-1]:g}, do not overlap with those of path_a, "
            f"{a.time_n[0]:g} to {a.time_n[-1]:g}; pass align='share'"
        )
    if n_points is None and np.array_equal(a.time_n, b.time_n):
        return a.time_n, a, b
    time_n = np.linspace(first, last, n)
    return time_n, at_times(a, time_n), at_times(b, time_n)


def at_times(route: Route, time_n: np.ndarray) -> Route:
    """The route at other times; conditions and pseudocounts of points are those of the nearest."""
    after = np.clip(np.searchsorted(route.time_n, time_n), 1, len(route.time_n) - 1)
    nearest = after - (time_n - route.time_n[after - 1] < route.time_n[after] - time_n)
    counts = route.pseudocount_n
    return replace(
        route,
        time_n=time_n,
        conditions=at_points(route.conditions, nearest),
        pseudocount_n=counts if len(counts) == 1 else counts[nearest],
    )


@torch.no_grad()
def differences(a: Route, b: Route) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Of each time and gene the log2 difference of the means, and how it scatters over draws; the scatter around each.

    The last is ``(n,)``: the root mean square over genes and over the paths, of those that are no bare lines.
    """
    n, g = len(a.time_n), a.plan.n_genes
    found = {name: np.empty((n, g), dtype=np.float32) for name in ("difference", "std", *QUANTILES)}
    scatter_n = np.empty(n)

    def part(first: int, last: int) -> None:
        for i in range(first, last):
            at = slice(i, i + 1)
            means, logs = [], []
            for route in (a, b):
                raised_sg = route.values(at)[:, 0] + float(route.pseudocounts(at)[0, 0])
                means.append(raised_sg.mean(0).log2())
                logs.append(raised_sg.log2_())
            around = [float(log.var(0, correction=0).mean()) for log, r in zip(logs, (a, b), strict=True) if not r.bare]
            scatter_n[i] = np.sqrt(np.mean(around)) if around else 0.0
            tile = summary((logs[1] - logs[0]).unsqueeze(1).numpy(), at)
            found["difference"][i] = (means[1] - means[0]).numpy()
            for name, layer in tile.layers.items():
                found[name][i] = layer[0]

    with own_threads():
        side_by_side(part, n, least=_PIECE)
    return found, scatter_n


def difference_table(
    genes: tuple[str, ...], time_n: np.ndarray, arrays: Mapping[str, np.ndarray], min_change: float, least_score: float
) -> tuple[pd.DataFrame, np.ndarray]:
    """The table of genes; and where they differ, ``(n, g)``."""
    difference_ng = arrays["difference"]
    lower_ng, upper_ng = arrays["q05"], arrays["q95"]
    # positive where the difference is large enough and beyond its error bar; linear between two times
    above_ng = np.minimum(difference_ng - np.float32(min_change), lower_ng)
    below_ng = np.minimum(-difference_ng - np.float32(min_change), -upper_ng)
    at, columns = np.abs(difference_ng).argmax(axis=0), np.arange(len(genes))
    largest, std = difference_ng[at, columns], arrays["std"][at, columns]
    score = scores(largest, std, min_change)
    parts = since(time_n, np.where(difference_ng[-1] > 0, above_ng, below_ng))
    table = pd.DataFrame(
        {
            "gene": np.asarray(genes, dtype=object),
            "start_difference": difference_ng[0],
            "end_difference": difference_ng[-1],
            "max_difference": largest,
            "max_time": time_n[at],
            "divergence_time": np.where(score >= least_score, parts, np.nan),
            "std": std,
            "score": score,
        }
    )
    order = np.argsort(-table["score"].to_numpy(), kind="stable")
    table = table.iloc[order].reset_index(drop=True).assign(rank=np.arange(1, len(genes) + 1))
    return table, ((above_ng >= 0) | (below_ng >= 0)) & (score >= least_score)


def since(time_n: np.ndarray, margin_ng: np.ndarray) -> np.ndarray:
    """The first time from which on a margin is never below zero, ``(g,)``; NaN where it is at the end."""
    below_ng = margin_ng < 0
    n = len(time_n)
    last = np.where(below_ng.any(axis=0), n - 1 - below_ng[::-1].argmax(axis=0), -1)  # of the times below
    columns = np.arange(margin_ng.shape[1])
    before, after = np.clip(last, 0, n - 2), np.clip(last, 0, n - 2) + 1
    low, high = (margin_ng[i, columns].astype(np.float64) for i in (before, after))
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = time_n[before] + (time_n[after] - time_n[before]) * (low / (low - high))
    return np.where(last < 0, time_n[0], np.where(last == n - 1, np.nan, crossing))
