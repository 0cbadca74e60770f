"""The command that writes a decoder for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdecode.cli.app import app
from scdecode.cli.options import (
    Batch,
    Categorical,
    Continuous,
    Genes,
    Labels,
    LibrarySize,
    MaxConditions,
    Model,
    Overwrite,
    check_free,
    conditions,
    split_genes,
)
from scdecode.errors import InputError


@app.command(epilog="Example: scdecode export model/ decoder.onnx --batch donor_1 --library-size 10000")
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="The .onnx file to write.", metavar="OUT", show_default=False)],
    batch: Batch = None,
    categorical: Categorical = None,
    continuous: Continuous = None,
    labels: Labels = None,
    quantity: Annotated[str, typer.Option(help="scale, rate or mean.")] = "rate",
    library_size: LibrarySize = None,
    genes: Genes = None,
    max_conditions: MaxConditions = 100,
    overwrite: Overwrite = False,
) -> None:
    """Write a decoder under fixed conditions as an ONNX file, checked against `decode`."""
    from scdecode.exporting import export_onnx
    from scdecode.opening import load

    if out.suffix != ".onnx":
        raise InputError(f"{out}: got the ending {out.suffix!r}, expected '.onnx'; choose another name")
    check_free(out, overwrite)
    decoder, n_points, difference = export_onnx(
        load(model),
        out,
        overwrite=overwrite,
        quantity=quantity,
        genes=split_genes(genes),
        max_conditions=max_conditions,
        **conditions(batch, labels, categorical, continuous, library_size),
    )
    typer.echo(
        f"{out}: points (n, {decoder.n_latent}) to {len(decoder.genes):,} genes, {decoder.quantity}: {decoder.unit}; "
        f"onnxruntime and decode differ by {difference:.1e} at most on {n_points} points"
    )
