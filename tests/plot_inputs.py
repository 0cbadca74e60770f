"""What the tests of pictures draw: small paths through a small model, with lineages, conditions and error bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import scdecode as sd


@dataclass(frozen=True, eq=False)
class Tube:
    """A path as ``model.decode`` takes it."""

    points: np.ndarray
    time: np.ndarray
    spread: np.ndarray | None
    lineages: tuple[str, ...] | None = None
    time_name: str = "pseudotime"
    report: dict[str, Any] | None = None


def between(model: sd.SCVI, first: int, last: int, n: int = 20, **others: Any) -> Tube:
    """From one reference cell to another, with the spread of the unit normal over ten."""
    z = model.reference_latents()
    time = np.linspace(0.0, 1.0, n)
    points = z[first] + time[:, None] * (z[last] - z[first])
    spread = np.broadcast_to(0.1 * np.eye(z.shape[1]), (n, z.shape[1], z.shape[1]))
    return Tube(points.astype(np.float32), time, spread.astype(np.float32), **others)


def lineages(model: sd.SCVI, n: int = 20) -> Tube:
    """Two paths from one cell."""
    parts = [between(model, 0, last, n) for last in (1, 2)]
    arrays = (np.stack([getattr(part, name) for part in parts]) for name in ("points", "time", "spread"))
    return Tube(*arrays, ("left", "right"))


def with_support(expression: AnnData, far: Any) -> AnnData:
    """The result with other support."""
    changed = expression.copy()
    changed.obs["supported"] = pd.array(~np.asarray(far, dtype=bool), dtype="boolean")
    return changed


def words(on: Any) -> list[str]:
    """What the key of Axes, or of their figure, says; of several, that of the first."""
    on = on[0] if isinstance(on, list) else on
    found = [on.get_legend(), *on.figure.legends]
    return [text.get_text() for legend in found if legend is not None for text in legend.get_texts()]


def drawn(ax: Any) -> list[Any]:
    """The lines of Axes that are no helpers of others."""
    return [line for line in ax.lines if not str(line.get_label()).startswith("_")]
