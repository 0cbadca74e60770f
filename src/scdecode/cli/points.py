"""The commands that turn cells into latents and latents into expression: encode, decode, generate; and demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from scdecode.cli.app import app
from scdecode.cli.options import (
    Batch,
    Categorical,
    CellsFile,
    Continuous,
    Device,
    Draws,
    Genes,
    Labels,
    LibrarySize,
    MaxConditions,
    Model,
    Overwrite,
    Quantity,
    Seed,
    check_free,
    check_result,
    conditions,
    one_or_several,
    read_number,
    read_numbers,
    read_pairs,
    split_genes,
)
from scdecode.cli.results import write_decoded


@app.command(epilog="Example: scdecode encode model/ cells.h5ad --out latent.npy")
def encode(
    model: Model,
    cells: CellsFile,
    out: Annotated[Path, typer.Option(help=".npy, .csv, .tsv; or .h5ad for the cells with obsm.", show_default=False)],
    n_samples: Annotated[int | None, typer.Option(help="Draw from the posterior (.npy) instead of its mean.")] = None,
    use_rep: Annotated[str, typer.Option(help="Entry of obsm, for .h5ad.")] = "X_scVI",
    layer: Annotated[
        str | None,
        typer.Option(help="Layer of raw counts; 'raw' for adata.raw.", show_default="as in training"),
    ] = None,
    use_raw: Annotated[bool, typer.Option("--use-raw", help="Read the counts of adata.raw.")] = False,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Write the latent representation of cells."""
    from scdecode.cells import open_anndata
    from scdecode.opening import load
    from scdecode.tables import check_ending, write_latents

    check_ending(out, (".npy", ".csv", ".tsv", ".h5ad") if n_samples is None else (".npy",))
    check_free(out, overwrite)
    adata = open_anndata(cells)
    latents = load(model).get_latent_representation(
        adata, n_samples=n_samples, seed=seed, device=device, layer=layer, use_raw=use_raw or None
    )
    write_latents(out, latents, adata, use_rep, overwrite=overwrite)
    typer.echo(f"{out}: {' x '.join(f'{n:,}' for n in latents.shape)} latents")


@app.command(
    epilog="Example: scdecode decode model/ latent.npy --batch donor_1 --library-size 10000 --out expression.h5ad"
)
def decode(
    model: Model,
    points: Annotated[
        Path,
        typer.Argument(
            help="Points: .npy, .csv, .tsv, .h5ad, .zarr, or the .safetensors of a path that was saved.",
            metavar="POINTS",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help=".h5ad or .zarr (streamed), .csv or .tsv.", show_default=False)],
    batch: Batch = None,
    categorical: Categorical = None,
    continuous: Continuous = None,
    labels: Labels = None,
    quantity: Quantity = "rate",
    library_size: LibrarySize = None,
    genes: Genes = None,
    spread: Annotated[float | None, typer.Option(help="Standard deviation of the latents around each point.")] = None,
    n_samples: Draws = None,
    use_rep: Annotated[str | None, typer.Option(help="Entry of obsm with the points, for .h5ad and .zarr.")] = None,
    max_conditions: MaxConditions = 100,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Decode latent points, which need be no cell's, to gene expression."""
    from scdecode.formats.path_files import ENDING
    from scdecode.opening import load
    from scdecode.tables import read_points_file
    from scdecode.trajectory import Trajectory

    check_result(out, overwrite)
    write_decoded(
        load(model),
        Trajectory.load(points) if points.suffix == ENDING else read_points_file(points),
        out,
        overwrite=overwrite,
        use_rep=use_rep,
        quantity=quantity,
        genes=split_genes(genes),
        spread=spread,
        n_samples=n_samples,
        max_conditions=max_conditions,
        device=device,
        seed=seed,
        **conditions(batch, labels, categorical, continuous, library_size),
    )


@app.command(epilog="Example: scdecode generate model/ --n 1000 --batch donor_1 --out generated.h5ad")
def generate(
    model: Model,
    n: Annotated[int, typer.Option("--n", help="Number of cells.", show_default=False)],
    out: Annotated[Path, typer.Option(help=".h5ad or .zarr (streamed), .csv or .tsv.", show_default=False)],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", help="Label of the cells; repeat for several, as frequent as they are.", show_default="all"
        ),
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(
            "--batch",
            help="Batch of the cells; repeat for several, as frequent as they are, or as NAME=WEIGHT with weights.",
            show_default="all",
        ),
    ] = None,
    categorical: Categorical = None,
    continuous: Continuous = None,
    library_size: Annotated[
        str | None,
        typer.Option(
            help="Counts of a cell, or 'observed' for the training median.", show_default="those of training cells"
        ),
    ] = None,
    genes: Genes = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Generate cells of a label in a batch: counts of cells that could have been among the training cells."""
    from scdecode.opening import load
    from scdecode.tables import write_table

    check_result(out, overwrite)
    sizes = library_size if library_size in (None, "observed") else read_number("--library-size", library_size)
    streamed = out if out.suffix in (".h5ad", ".zarr") else None
    opened = load(model)
    cells = opened.generate(
        n,
        labels=one_or_several(labels),
        batch=one_or_several(batch),
        categorical=read_pairs("--categorical", categorical),
        continuous=read_numbers(continuous) or None,
        library_size=sizes,
        genes=split_genes(genes),
        device=device,
        seed=seed,
        out=streamed,
        overwrite=overwrite and streamed is not None,
    )
    if streamed is None:
        write_table(out, cells, overwrite=overwrite)
    n_from = json.loads(cells.uns["scdecode"]["generated"])["n_reference_cells"]
    typer.echo(f"{out}: {cells.n_obs:,} cells x {cells.n_vars:,} genes, counts, from {n_from:,} reference cells")


@app.command(epilog="Example: scdecode demo --out demo/")
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("demo"),
    max_epochs: Annotated[int | None, typer.Option(help="Passes over the cells.", show_default="400")] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Cells of two fates to a model, the way to each, its genes and pictures, without a network."""
    from scdecode.demo import END, START, run_demo

    check_free(out, overwrite)
    done = run_demo(out, max_epochs=max_epochs, seed=seed, say=typer.echo, overwrite=overwrite)
    for word, ranked in (("rise", done.risen), ("fall", done.fallen)):
        shown = ", ".join(f"{gene} ({change:+.1f})" for gene, change in ranked)
        typer.echo(f"genes that {word} most from {START} to {END} (log2 fold change): {shown}")
    if done.unsupported:
        typer.echo(f"{done.unsupported} points of the path lie far from every training cell; the pictures mark them")
    typer.echo("written:")
    for path in done.files.values():
        typer.echo(f"  {path}")
