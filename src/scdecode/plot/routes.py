"""Paths in any form to lines through the latent space, each with its name and its support."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scdecode.errors import InputError
from scdecode.model import SCVI
from scdecode.points import read_points
from scdecode.support import FAR


@dataclass(frozen=True, eq=False)
class Route:
    """One line through the latent space."""

    name: str
    words: str  # its name, and how long it is where that is known
    z_nk: np.ndarray  # (n, k) float64
    spread_nkk: np.ndarray | None  # (n, k, k) covariances
    time_n: np.ndarray | None
    time_name: str | None
    support_n: np.ndarray | None  # percent; None where the model has nothing to measure it against

    @property
    def far(self) -> np.ndarray:
        """(n,) bool: not supported by training cells."""
        return np.zeros(len(self.z_nk), dtype=bool) if self.support_n is None else self.support_n > FAR


def routes_of(model: SCVI, points: Any) -> list[Route]:
    """Read paths.

    Parameters
    ----------
    model
        Trained.
    points
        What :func:`scdecode.plot.latent` takes.

    Raises
    ------
    InputError
        For a mapping without paths.
    PointsError
        For points that are none of the model's.
    """
    if isinstance(points, Mapping):
        if not points:
            raise InputError("points: an empty mapping came, names and their paths were expected")
        routes = []
        for name, path in points.items():
            inner = routes_of(model, path)
            for route in inner:
                own = str(name) if len(inner) == 1 else f"{name}, {route.name}"
                routes.append(Route(**{**vars(route), "name": own, "words": own + _length(path)}))
        return routes
    read = read_points(points, model.config.n_latent, simplex=model.config.latent_distribution == "ln")
    z_nk = read.z_nk.numpy().astype(np.float64)
    index = model.support_index()
    support_n = None if index is None else index.percentile(read.z_nk)
    spread = None if read.spread is None else np.asarray(read.spread, dtype=np.float64)
    if spread is not None and spread.ndim == 2:  # standard deviations
        spread = np.stack([np.diag(deviation**2) for deviation in spread])
    parts = [("path" if read.lineage is None else str(read.lineage[0]), slice(None))]
    if len(read.shape) > 1:
        size = read.shape[-1]
        names = list(getattr(points, "lineages", None) or ()) or [f"path {i + 1}" for i in range(len(z_nk) // size)]
        parts = [(str(name), slice(i * size, (i + 1) * size)) for i, name in enumerate(names)]
    return [
        Route(
            name=name,
            words=name + (_length(points) if len(parts) == 1 else ""),
            z_nk=z_nk[rows],
            spread_nkk=None if spread is None else spread[rows],
            time_n=None if read.time is None else np.asarray(read.time, dtype=float)[rows],
            time_name=read.time_name,
            support_n=None if support_n is None else support_n[rows],
        )
        for name, rows in parts
    ]


def _length(path: Any) -> str:
    """How long a path is by the decoder's metric, where its maker knew."""
    report = getattr(path, "report", None) or {}
    if "length" not in report or "ratio" not in report:  # one through the graph of cells has that of the latent space
        return ""
    return f": length {float(report['length']):.3g}, straight {float(report['ratio']):.2f} times it"
