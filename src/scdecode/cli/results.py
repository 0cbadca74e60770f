"""What commands write: decoded expression to a file, with a bar where it takes long, and a line that says so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import typer


def write_decoded(
    model: Any, points: Any, out: Path, *, overwrite: bool, n_points: int | None = None, **options: Any
) -> Any:
    """Decode points to a file: tile by tile to .h5ad and .zarr, at once to a table."""
    from scdecode.progress import counting_progress
    from scdecode.tables import write_table

    streamed = out if out.suffix in (".h5ad", ".zarr") else None
    with counting_progress("decoding", n_points or _count(points), enabled=True) as add:
        replace = overwrite and streamed is not None
        expression = model.decode(points, out=streamed, overwrite=replace, on_tile=add, **options)
    if streamed is None:
        write_table(out, expression, overwrite=overwrite)
    tell_of(out, expression)
    return expression


def write_whole(expression: Any, out: Path, *, overwrite: bool) -> None:
    """Write a result that is in memory."""
    from scdecode.results import write_h5ad
    from scdecode.tables import write_table

    if out.suffix == ".h5ad":
        write_h5ad(expression, out, overwrite=overwrite)
    else:
        write_table(out, expression, overwrite=overwrite)
    tell_of(out, expression)


def tell_of(out: Path, expression: Any) -> None:
    """Say what was written, and in which unit."""
    made = expression.uns["scdecode"]
    typer.echo(f"{out}: {expression.n_obs:,} x {expression.n_vars:,} genes, {made['unit']}")
    if made["support"].startswith("unknown"):
        typer.echo("note: support is unknown; scdecode convert MODEL NEW --reference CELLS adds it", err=True)


def _count(points: Any) -> int | None:
    """How many points there are, where it is plain: a bar is then a bar."""
    shape = getattr(points, "shape", None)
    return math.prod(shape[:-1]) if shape is not None else len(points)
