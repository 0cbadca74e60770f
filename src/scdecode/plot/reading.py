"""What a picture reads from a decoded result: its unit, its lines, its genes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode.errors import InputError, unknown_name
from scdecode.pseudocounts import PSEUDOCOUNT


@dataclass(frozen=True, eq=False)
class Line:
    """The points of one lineage in one condition, in the order of their time."""

    lineage: str | None
    condition: str | None
    rows: np.ndarray  # (n,) of the result
    x: np.ndarray  # (n,) float64: their time, or their number
    far: np.ndarray  # (n,) bool: not supported by training cells; False where that is not known

    @property
    def name(self) -> str | None:
        """Lineage and condition, in words."""
        return ", ".join(part for part in (self.lineage, self.condition) if part is not None) or None


def made_of(expression: AnnData) -> Any:
    """What a result says of itself.

    Raises
    ------
    InputError
        Where it is not a result of ``model.decode``.
    """
    made = expression.uns.get("scdecode")
    if made is None:
        raise InputError("expression: it has no uns['scdecode']; a result of model.decode(...) was expected")
    return made


def unit_of(expression: AnnData) -> str:
    """Return the unit of the expression, short enough for an axis; :func:`unit_words` has the rest."""
    made = made_of(expression)
    if "baseline" in made:  # what counterfactual() gives of the conditions: each less the baseline
        return f"difference from {made['baseline']}"
    return _unit(expression, made)


def _unit(expression: AnnData, made: Any) -> str:
    if made["quantity"] == "scale":
        return "fraction of RNA" if made["library"] == "counts" else "expression at size factor one"
    word = "drawn counts" if made["quantity"] == "counts" else "expected counts"
    sizes = expression.obs["library_size"].unique()
    return f"{word} per {sizes[0]:,.6g}" if made["library"] == "counts" and len(sizes) == 1 else word


def unit_words(expression: AnnData) -> str:
    """Return what the unit does not say, as sentences for a caption."""
    made = made_of(expression)
    said = [f"The difference is in {_unit(expression, made)}."] if "baseline" in made else []
    if made["quantity"] != "scale":
        sizes = expression.obs["library_size"].unique()
        counts = made["library"] == "counts"
        if len(sizes) > 1:
            said.append(f"Expected at the {'library size' if counts else 'size factor'} of each point.")
        elif not counts:
            said.append(f"Expected at a size factor of {sizes[0]:.3g}.")
    if is_before_zeros(expression):
        said.append("Expression is that before zero inflation.")
    elif made["quantity"] == "mean":
        said += ["Expression includes zero inflation."] if str(made.get("gene_likelihood")) == "zinb" else []
    return " ".join(said)


def is_before_zeros(expression: AnnData) -> bool:
    """Whether the expression is that of a zero-inflated model without its zeros: not what cells are seen to have."""
    made = made_of(expression)
    return str(made.get("gene_likelihood")) == "zinb" and str(made["quantity"]) in ("rate", "scale")


def is_difference(expression: AnnData) -> bool:
    """Whether it is one expression less another, as :func:`scdecode.counterfactual` gives it."""
    return "baseline" in made_of(expression)


def log_expression(expression: AnnData, columns: Any) -> np.ndarray:
    """log2 of counts per ten thousand, whatever the quantity and the library size, ``(points, genes)``.

    With a pseudocount, as of all fold changes. For a model with a size factor, they are per ten thousand of the genes
    that the expression has.

    Raises
    ------
    InputError
        For negative values.
    """
    made = made_of(expression)
    values_ng = dense(expression.X, columns)
    if (values_ng < 0).any():
        raise InputError("expression: it has negative values, which have no logarithm; expression was expected")
    if made["library"] != "counts":
        total_n = dense(expression.X, np.arange(expression.n_vars)).sum(axis=1)
    elif made["quantity"] == "scale":
        total_n = np.ones(len(values_ng))
    else:
        total_n = expression.obs["library_size"].to_numpy(dtype=float)
    return np.asarray(np.log2(values_ng * (1e4 / np.maximum(total_n, 1e-300))[:, None] + PSEUDOCOUNT))


def time_label(expression: AnnData) -> str:
    """What the horizontal axis is."""
    if "time" not in expression.obs:
        return "point"
    return str(made_of(expression).get("time_name", "position along the path"))


def lines_of(expression: AnnData) -> list[Line]:
    """The lines of a result: one, or one for each lineage and condition."""
    obs = expression.obs
    keys = [name for name in ("lineage", "condition") if name in obs]
    time_n = obs["time"].to_numpy(dtype=float) if "time" in obs else np.arange(len(obs), dtype=float)
    far_n = ~obs["supported"].fillna(True).to_numpy(dtype=bool)  # where support is unknown nothing is marked
    groups: list[tuple[tuple[Any, ...], np.ndarray]] = [((), np.arange(len(obs)))]
    if keys:
        codes_n, names = pd.MultiIndex.from_frame(obs[keys].astype(str)).factorize()
        groups = [(tuple(name), np.flatnonzero(codes_n == code)) for code, name in enumerate(names)]
    lines = []
    for name, rows in groups:
        named = dict(zip(keys, name, strict=True))
        order = rows[np.argsort(time_n[rows], kind="stable")] if "time" in obs else rows
        x = time_n[order] if "time" in obs else np.arange(len(order), dtype=float)
        lines.append(Line(named.get("lineage"), named.get("condition"), order, x, far_n[order]))
    return lines


def is_line(expression: AnnData, lines: Sequence[Line]) -> bool:
    """Whether points follow one another in time: not those of no path, nor several draws of one point."""
    return "time" in expression.obs and all((np.diff(line.x) > 0).all() for line in lines)


def columns_of(expression: AnnData, genes: Sequence[str], place: str = "genes", kind: str = "decoded genes") -> Any:
    """Where genes are among those of a result or of cells.

    Raises
    ------
    InputError
        For no genes, or one that is not there.
    """
    if not len(genes):
        raise InputError(f"{place}: none came, names of {kind} were expected")
    positions = expression.var_names.get_indexer(pd.Index(list(genes)))
    if (positions < 0).any():
        raise InputError(unknown_name(place, genes[int((positions < 0).argmax())], list(expression.var_names), kind))
    return positions


def dense(matrix: Any, columns: Any) -> np.ndarray:
    """Columns of an expression matrix, in memory or on disk, dense or sparse."""
    if hasattr(matrix, "to_memory"):  # anndata's sparse matrices on disk
        matrix = matrix.to_memory()
    values = matrix[:, columns].toarray() if sp.issparse(matrix) else np.asarray(matrix[:])[:, columns]
    return np.asarray(values, dtype=np.float64)


@checked
def most_changing(expression: AnnData, n: int = 30) -> list[str]:
    """The genes that change most over the points, ordered by where along them they are highest.

    By how far log2 of their counts per ten thousand (plus 0.1, as of all fold changes) scatters over the points, which
    depends neither on the library size nor on the quantity. Of a difference (``sd.counterfactual(...).difference``) by
    its largest size in its unit, ordered by where that is.

    Parameters
    ----------
    expression
        From ``model.decode``.
    n
        How many, at most.
    """
    made_of(expression)
    lines = lines_of(expression)
    rows, x = (np.concatenate(parts) for parts in ([line.rows for line in lines], [line.x for line in lines]))
    every = np.arange(expression.n_vars)
    if is_difference(expression):
        values = np.abs(dense(expression.X, every))[rows]
        change_g = values.max(axis=0)
    else:
        values = log_expression(expression, every)[rows]
        change_g = values.std(axis=0)
    chosen = np.argsort(-change_g, kind="stable")[:n]
    peaks = x[values[:, chosen].argmax(axis=0)]
    return [str(expression.var_names[i]) for i in chosen[np.argsort(peaks, kind="stable")]]
