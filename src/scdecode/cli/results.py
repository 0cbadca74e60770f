"""What commands write: decoded expression to a file, and a line that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def write_decoded(model: Any, points: Any, out: Path, *, overwrite: bool, **options: Any) -> Any:
    """Decode points to a file: tile by tile to .h5ad and .zarr, at once to a table."""
    from scdecode.tables import write_table

    streamed = out if out.suffix in (".h5ad", ".zarr") else None
    expression = model.decode(points, out=streamed, overwrite=overwrite and streamed is not None, **options)
    if streamed is None:
        write_table(out, expression, overwrite=overwrite)
    tell_of(out, expression)
    return expression


def write_path(expression: Any, out: Path, *, overwrite: bool) -> None:
    """Write a decoded path that is in memory: as AnnData, or as a long table."""
    from scdecode.results import write_h5ad
    from scdecode.tables import write_frame

    if out.suffix == ".h5ad":
        write_h5ad(expression, out, overwrite=overwrite)
    else:
        write_frame(out, long_table(expression), overwrite=overwrite)
    tell_of(out, expression)


def long_table(expression: Any) -> Any:
    """Return a decoded path as a table with a row for each gene and point.

    Columns: ``gene``, ``time``, ``mean``, ``low`` and ``high`` (the 5 % and 95 % quantiles, empty without error bars),
    ``lineage`` and ``condition`` if there are several, the other layers of the result by their names, ``supported``
    and ``unit``.
    """
    from scdecode.dynamics import trend_table

    table = trend_table(expression).rename(columns={"q05": "low", "q95": "high"})
    for name in expression.layers:
        if name not in (*table.columns, "q05", "q95"):
            table[name] = expression.to_df(name).to_numpy().ravel(order="F")
    first = ["gene", "time", "mean", "low", "high", "lineage", "condition"]
    last = ["supported", "unit"]
    others = [name for name in table.columns if name not in (*first, *last)]
    kept = [name for name in (*first, *others, *last) if name in table.columns or name in ("low", "high")]
    return table.reindex(columns=kept)


def tell_of(out: Path, expression: Any) -> None:
    """Say what was written, and in which unit."""
    made = expression.uns["scdecode"]
    typer.echo(f"{out}: {expression.n_obs:,} x {expression.n_vars:,} genes, {made['unit']}")
    if made["support"].startswith("unknown"):
        typer.echo("note: support is unknown; scdecode convert MODEL NEW --reference CELLS adds it", err=True)
