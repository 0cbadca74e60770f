"""The commands that turn cells into latents and latents into expression: encode, decode, path, generate; and demo."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

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
    read_pairs,
    split_commas,
)
from scdecode.errors import InputError, unknown_name


@app.command(epilog="Example: `scdecode encode model/ cells.h5ad --out latent.npy`")
def encode(
    model: Model,
    cells: CellsFile,
    out: Annotated[Path, typer.Option(help=".npy, .csv, .tsv; or .h5ad for the cells with obsm.", show_default=False)],
    n_samples: Annotated[int | None, typer.Option(help="Draw from the posterior (.npy) instead of its mean.")] = None,
    use_rep: Annotated[str, typer.Option(help="Entry of obsm, for .h5ad.")] = "X_scVI",
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
    latents = load(model).get_latent_representation(adata, n_samples=n_samples, seed=seed, device=device)
    write_latents(out, latents, adata, use_rep)
    typer.echo(f"{out}: {' x '.join(f'{n:,}' for n in latents.shape)} latents")


@app.command(
    epilog="Example: `scdecode decode model/ points.npy --batch donor_1 --library-size 10000 --out expression.h5ad`"
)
def decode(
    model: Model,
    points: Annotated[
        Path,
        typer.Argument(help="Points: .npy, .csv, .tsv, .h5ad or .zarr.", metavar="POINTS", show_default=False),
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
    from scdecode.opening import load
    from scdecode.tables import read_points_file

    check_result(out, overwrite)
    _write_decoded(
        load(model),
        read_points_file(points),
        out,
        use_rep=use_rep,
        quantity=quantity,
        genes=split_commas(genes),
        spread=spread,
        n_samples=n_samples,
        max_conditions=max_conditions,
        device=device,
        seed=seed,
        **conditions(batch, labels, categorical, continuous, library_size),
    )


@app.command(
    epilog="Example: `scdecode path model/ cells.h5ad --from HSC --to Erythroid --key cell_type --out path.h5ad "
    "--plot path.png`"
)
def path(
    model: Model,
    cells: CellsFile,
    start: Annotated[str, typer.Option("--from", help="Category where the path begins.", show_default=False)],
    end: Annotated[str, typer.Option("--to", help="Category where the path ends.", show_default=False)],
    key: Annotated[str, typer.Option(help="Column of obs with the categories.", show_default=False)],
    out: Annotated[Path, typer.Option(help=".h5ad or .zarr (streamed), .csv or .tsv.", show_default=False)],
    how: Annotated[str, typer.Option(help="linear: the straight path.")] = "linear",
    n_points: Annotated[int, typer.Option(help="Points on the path.")] = 100,
    line: Annotated[
        bool, typer.Option("--line", help="Decode the bare line, not the cells' spread around it.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Picture of the trends (.png, .pdf, .svg).")] = None,
    batch: Batch = None,
    categorical: Categorical = None,
    continuous: Continuous = None,
    labels: Labels = None,
    quantity: Quantity = "rate",
    library_size: LibrarySize = None,
    genes: Genes = None,
    n_samples: Draws = None,
    max_conditions: MaxConditions = 100,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Decode a path from one category of cells to another."""
    from scdecode import plot as plots
    from scdecode.cells import open_anndata
    from scdecode.opening import load
    from scdecode.tables import check_ending
    from scdecode.trajectory import Trajectory

    check_result(out, overwrite)
    if plot is not None:
        plots.check_matplotlib()
        check_ending(plot, plots.PICTURES)
        check_free(plot, overwrite)
    opened, adata = load(model), open_anndata(cells)
    if key not in adata.obs:
        raise InputError(unknown_name("--key", key, [str(name) for name in adata.obs], "columns of obs"))
    category = adata.obs[key].astype(str).to_numpy()
    for option, name in (("--from", start), ("--to", end)):
        if name not in category:
            raise InputError(unknown_name(option, name, sorted(set(category)), f"categories of {key!r}"))
    # the normal posterior of a logistic normal is that of z before its softmax, and no latent point
    encode_cells = (
        opened.posterior if opened.config.latent_distribution == "normal" else opened.get_latent_representation
    )
    first, last = (encode_cells(adata, indices=category == name) for name in (start, end))
    between = Trajectory.between(opened, first, last, n_points=n_points, how=how, spread=not line)
    chosen = split_commas(genes)
    expression = _write_decoded(
        opened,
        between,
        out,
        quantity=quantity,
        genes=chosen,
        n_samples=n_samples,
        max_conditions=max_conditions,
        device=device,
        seed=seed,
        **conditions(batch, labels, categorical, continuous, library_size),
    )
    if plot is not None:
        plots.save(plots.trends(expression, chosen or plots.most_changing(expression, 6)), plot)
        typer.echo(f"{plot}: trends")


@app.command(epilog='Example: `scdecode generate model/ --n 1000 --labels "B cell" --batch donor_1 --out cells.h5ad`')
def generate(
    model: Model,
    n: Annotated[int, typer.Option("--n", help="Number of cells.", show_default=False)],
    out: Annotated[Path, typer.Option(help=".h5ad or .zarr (streamed), .csv or .tsv.", show_default=False)],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", help="Label of the cells; repeat for several, as frequent as they are. [default: all]"
        ),
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option("--batch", help="Batch of the cells; repeat for several, as frequent as they are. [default: all]"),
    ] = None,
    categorical: Categorical = None,
    library_size: Annotated[
        str | None,
        typer.Option(
            help="Counts of a cell, or 'observed' for the training median. [default: those of training cells]"
        ),
    ] = None,
    genes: Genes = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Generate cells of a label in a batch: counts of cells that could have been among the training cells."""
    from scdecode.opening import load
    from scdecode.progress import counting_progress
    from scdecode.tables import write_table

    check_result(out, overwrite)
    sizes = library_size if library_size in (None, "observed") else read_number("--library-size", library_size)
    streamed = out if out.suffix in (".h5ad", ".zarr") else None
    opened = load(model)
    with counting_progress("generating", n, enabled=True) as add:
        cells = opened.generate(
            n,
            labels=one_or_several(labels),
            batch=one_or_several(batch),
            categorical=read_pairs("--categorical", categorical),
            library_size=sizes,
            genes=split_commas(genes),
            device=device,
            seed=seed,
            out=streamed,
            on_tile=add,
        )
    if streamed is None:
        write_table(out, cells)
    n_from = json.loads(cells.uns["scdecode"]["generated"])["n_reference_cells"]
    typer.echo(f"{out}: {cells.n_obs:,} cells x {cells.n_vars:,} genes, counts, from {n_from:,} reference cells")


@app.command(epilog="Example: `scdecode demo --out demo/`")
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to; it is made anew.")] = Path("demo"),
    max_epochs: Annotated[int | None, typer.Option(help="Passes over the cells. [default: 400]")] = None,
    seed: Seed = 0,
) -> None:
    """Real cells to a model, a path, its genes and pictures, without a network."""
    from scdecode.demo import END, START, run_demo

    done = run_demo(out, max_epochs=max_epochs, seed=seed, say=typer.echo)
    for word, ranked in (("rise", done.risen), ("fall", done.fallen)):
        shown = ", ".join(f"{gene} ({change:+.1f})" for gene, change in ranked)
        typer.echo(f"genes that {word} most from {START} to {END} (log2 fold change): {shown}")
    if done.unsupported:
        typer.echo(f"{done.unsupported} points of the path lie far from every training cell; the pictures mark them")
    typer.echo("written:")
    for path in done.files.values():
        typer.echo(f"  {path}")


def _write_decoded(model: Any, points: Any, out: Path, **options: Any) -> Any:
    from scdecode.progress import counting_progress
    from scdecode.tables import write_table

    streamed = out if out.suffix in (".h5ad", ".zarr") else None
    with counting_progress("decoding", _count(points), enabled=True) as add:
        expression = model.decode(points, out=streamed, on_tile=add, **options)
    if streamed is None:
        write_table(out, expression)
    made = expression.uns["scdecode"]
    typer.echo(f"{out}: {expression.n_obs:,} x {expression.n_vars:,} genes, {made['unit']}")
    if made["support"].startswith("unknown"):
        typer.echo("note: support is unknown; scdecode convert MODEL NEW --reference CELLS adds it", err=True)
    return expression


def _count(points: Any) -> int | None:
    """How many points there are, where it is plain: a bar is then a bar."""
    shape = getattr(points, "shape", None)
    return math.prod(shape[:-1]) if shape is not None else len(points)
