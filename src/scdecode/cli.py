"""The command line: the public calls that a notebook makes. Errors are one line; ``--debug`` shows the traceback."""

from __future__ import annotations

import json
import math
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from scdecode.errors import InputError, ScdecodeError, listing, unknown_name

LITTLE_KL = 0.5
"""A training that ends with a smaller weight of the KL term gets a note: its latent space is not filled evenly."""

app = typer.Typer(
    name="scdecode",
    help="Turn any point of an scVI latent space into gene expression.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[Path, typer.Argument(help="A model directory.", metavar="MODEL", show_default=False)]
CellsFile = Annotated[
    Path, typer.Argument(help="Cells: an .h5ad file or a .zarr store.", metavar="CELLS", show_default=False)
]
Batch = Annotated[
    list[str] | None,
    typer.Option("--batch", help="Batch to decode in; repeat to average over several. [default: the training average]"),
]
Categorical = Annotated[
    list[str] | None,
    typer.Option("--categorical", help="A categorical covariate, as NAME=VALUE; repeatable.", metavar="NAME=VALUE"),
]
Continuous = Annotated[
    list[str] | None,
    typer.Option("--continuous", help="A continuous covariate, as NAME=NUMBER; repeatable.", metavar="NAME=NUMBER"),
]
Labels = Annotated[list[str] | None, typer.Option("--labels", help="Label, for dispersion gene-label.")]
Quantity = Annotated[str, typer.Option(help="scale, rate, mean or counts.")]
LibrarySize = Annotated[
    str | None,
    typer.Option(help="Counts of the decoded cell, or 'observed' for the training median. [default: 10000]"),
]
Genes = Annotated[
    list[str] | None, typer.Option("--genes", help="Genes to keep, separated by commas; repeatable. [default: all]")
]
Draws = Annotated[int | None, typer.Option("--n-samples", help="Draws for the error bars, or of the counts.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
MaxConditions = Annotated[int, typer.Option(help="Combinations of conditions to average over, at most.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Seed = Annotated[int, typer.Option(help="Seed of all that is random.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scdecode {version('scdecode')}")
        raise typer.Exit


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command; :func:`main` looks for --debug itself, wherever it stands."""


@app.command(
    epilog="Example: `scdecode train cells.h5ad --layer counts --batch-key donor --gene-likelihood nb --out model/`"
)
def train(
    cells: CellsFile,
    out: Annotated[Path, typer.Option(help="Directory to write the model to.", show_default=False)],
    layer: Annotated[str | None, typer.Option(help="Layer of raw counts. [default: X]")] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of obs with the batch.")] = None,
    labels_key: Annotated[str | None, typer.Option(help="Column of obs with a label.")] = None,
    size_factor_key: Annotated[str | None, typer.Option(help="Column of obs with size factors.")] = None,
    categorical_key: Annotated[
        list[str] | None, typer.Option("--categorical-key", help="Column with a categorical covariate; repeatable.")
    ] = None,
    continuous_key: Annotated[
        list[str] | None, typer.Option("--continuous-key", help="Column with a continuous covariate; repeatable.")
    ] = None,
    n_latent: Annotated[int, typer.Option(help="Dimensions of the latent space.")] = 10,
    n_layers: Annotated[int, typer.Option(help="Hidden layers of each network.")] = 1,
    n_hidden: Annotated[int, typer.Option(help="Units of a hidden layer.")] = 128,
    gene_likelihood: Annotated[str, typer.Option(help="zinb, nb, poisson or normal.")] = "zinb",
    dispersion: Annotated[str, typer.Option(help="gene, gene-batch, gene-label or gene-cell.")] = "gene",
    max_epochs: Annotated[int | None, typer.Option(help="Passes over the cells. [default: by their number]")] = None,
    batch_size: Annotated[int, typer.Option(help="Cells in a minibatch.")] = 128,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    early_stopping: Annotated[
        bool, typer.Option("--early-stopping", help="Stop when the validation ELBO no longer improves.")
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other option of ModelConfig or TrainConfig; repeatable.", metavar="NAME=VALUE"),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to keep the state in; where it exists, training goes on from it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the directory if it is there.")] = False,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Train a model on raw counts and write it to a directory."""
    from scdecode.cells import open_anndata
    from scdecode.formats.native import check_target
    from scdecode.model import SCVI

    _check_free(out, overwrite)
    check_target(out, overwrite=overwrite)  # before the training, not after it
    model_options, train_options = _split_options(option)
    adata = open_anndata(cells)
    SCVI.setup_anndata(
        adata,
        layer=layer,
        batch_key=batch_key,
        labels_key=labels_key,
        size_factor_key=size_factor_key,
        categorical_covariate_keys=categorical_key,
        continuous_covariate_keys=continuous_key,
    )
    named = {
        "n_latent": n_latent,
        "n_layers": n_layers,
        "n_hidden": n_hidden,
        "gene_likelihood": gene_likelihood,
        "dispersion": dispersion,
    }
    model = SCVI(adata, **{**named, **model_options}, seed=seed)
    training = {"batch_size": batch_size, "lr": lr, "early_stopping": early_stopping, "seed": seed}
    try:
        model.train(max_epochs, device=device, checkpoint=checkpoint, **{**training, **train_options})
    finally:
        if model.is_trained:  # where the loss broke, too: it has the weights of the last whole epoch
            model.save(out, overwrite=overwrite)
    last = model.history_table.iloc[-1]
    of = "validation" if "elbo_validation" in last.dropna() else "train"
    typer.echo(f"{out}: {len(model.history_table)} epochs, {last[f'elbo_{of}']:,.2f} nats a {of} cell (negative ELBO)")
    if last["kl_weight"] < LITTLE_KL:
        typer.echo(
            f"note: the KL term ended at a weight of {last['kl_weight']:.2f}; for paths and counterfactuals pass "
            f"--set n_epochs_kl_warmup={max(len(model.history_table) // 3, 1)} or less",
            err=True,
        )
    if model.info()["ending"] == "interrupted":
        raise typer.Exit(130)


@app.command(epilog="Example: `scdecode info model/`, or `scdecode info model/ --json | jq .options`")
def info(
    model: Model,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all genes.")] = False,
) -> None:
    """Show a model's genes, batches, covariates, options and training."""
    from scdecode.opening import load

    facts = load(model).info()
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "", title=escape(str(model)), show_header=False, title_justify="left")

    def row(name: str, value: str) -> None:
        table.add_row(escape(name), escape(value))

    row("cells x genes", f"{facts['n_cells']:,} x {facts['n_genes']:,}")
    row("genes", listing(facts["genes"], 8))
    row("median library size", f"{facts['median_library_size']:,.0f} counts")
    for key, value in facts["columns"].items():
        if value:
            row(key, value if isinstance(value, str) else ", ".join(value))
    for key, names in facts["categories"].items():
        row(f"{key} ({len(names)} levels)", listing(names, 12))
    row("conditions seen", f"{facts['n_conditions']:,} combinations")
    row("options", ", ".join(f"{key}={value}" for key, value in facts["options"].items()))
    row("training", ", ".join(f"{k}={v}" for k, v in facts["training"].items() if v is not None))
    row("epochs", f"{facts['epochs']} ({facts['ending']})")
    row("last epoch", ", ".join(f"{key}={value:,.4g}" for key, value in facts["last_epoch"].items()))
    row("reference cells", f"{facts['n_reference']:,}")
    Console().print(table)


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
    _check_free(out, overwrite)
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

    _check_result(out, overwrite)
    _write_decoded(
        load(model),
        read_points_file(points),
        out,
        use_rep=use_rep,
        quantity=quantity,
        genes=_split_commas(genes),
        spread=spread,
        n_samples=n_samples,
        max_conditions=max_conditions,
        device=device,
        seed=seed,
        **_conditions(batch, labels, categorical, continuous, library_size),
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

    _check_result(out, overwrite)
    if plot is not None:
        plots.check_matplotlib()
        check_ending(plot, plots.PICTURES)
        _check_free(plot, overwrite)
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
    chosen = _split_commas(genes)
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
        **_conditions(batch, labels, categorical, continuous, library_size),
    )
    if plot is not None:
        plots.save(plots.trends(expression, chosen or plots.most_changing(expression, 6)), plot)
        typer.echo(f"{plot}: trends")


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


def _check_result(out: Path, overwrite: bool) -> None:
    from scdecode.tables import check_ending

    check_ending(out, (".h5ad", ".zarr", ".csv", ".tsv"))
    _check_free(out, overwrite)


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise :class:`InputError` where something is there that nobody said may go: it could be the input."""
    if out.exists() and not overwrite:
        raise InputError(f"{out}: it is there already; choose another name, or pass --overwrite")


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
    return expression


def _count(points: Any) -> int | None:
    """How many points there are, where it is plain: a bar is then a bar."""
    shape = getattr(points, "shape", None)
    return math.prod(shape[:-1]) if shape is not None else len(points)


def _conditions(
    batch: list[str] | None,
    labels: list[str] | None,
    categorical: list[str] | None,
    continuous: list[str] | None,
    library_size: str | None,
) -> dict[str, Any]:
    numbers = {
        name: _number(f"--continuous {name}", value) for name, value in _pairs("--continuous", continuous).items()
    }
    observed = library_size is None or library_size == "observed"
    return {
        "batch": _one_or_several(batch),
        "labels": _one_or_several(labels),
        "categorical": _pairs("--categorical", categorical),
        "continuous": numbers,
        "library_size": library_size if observed else _number("--library-size", library_size),
    }


def _one_or_several(names: list[str] | None) -> str | list[str] | None:
    if not names:
        return None
    return names[0] if len(names) == 1 else names


def _pairs(option: str, values: list[str] | None) -> dict[str, str]:
    pairs = {}
    for value in values or []:
        name, equals, right = value.partition("=")
        if not equals or not name:
            raise InputError(f"{option}: {value!r} came, NAME=VALUE was expected")
        if name in pairs:
            raise InputError(f"{option}: {name!r} came twice, once was expected")
        pairs[name] = right
    return pairs


def _number(option: str, value: str | None) -> float:
    try:
        return float(str(value))
    except ValueError as error:
        raise InputError(f"{option}: {value!r} came, a number was expected") from error


def _split_commas(values: list[str] | None) -> list[str] | None:
    names = [name.strip() for value in values or [] for name in value.split(",") if name.strip()]
    return names or None


def _split_options(pairs: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """``--set`` options, as those of the model and those of the training; values are JSON, or else words."""
    from dataclasses import fields

    from scdecode.config import ModelConfig, TrainConfig

    # these have options of their own
    own = {"use_size_factor", "seed", "max_epochs", "batch_size", "lr", "early_stopping"}
    own |= {"n_latent", "n_layers", "n_hidden", "gene_likelihood", "dispersion"}
    of_model, of_training = ({field.name for field in fields(kind)} - own for kind in (ModelConfig, TrainConfig))
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for name, text in _pairs("--set", pairs).items():
        if name not in of_model | of_training:
            raise InputError(unknown_name("--set", name, sorted(of_model | of_training), "options"))
        try:
            value = json.loads(text)
        except ValueError:
            value = {"True": True, "False": False, "None": None}.get(text, text)
        (model if name in of_model else training)[name] = value
    return model, training


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {message}", err=True)


def main() -> None:
    """Run the command line; an error of ours is one line on standard error and exit status 1."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1  # wherever it stands
    warnings.showwarning = _show_warning
    try:
        app(args=arguments, prog_name="scdecode")
    except ScdecodeError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
