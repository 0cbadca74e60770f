"""The commands of whole models: train, info, convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from scdecode.cli.app import app
from scdecode.cli.options import CellsFile, Device, Model, Overwrite, Seed, check_free, read_pairs
from scdecode.errors import InputError, listing, unknown_name

LITTLE_KL = 0.5
"""A training that ends with a smaller weight of the KL term gets a note: its latent space is not filled evenly."""


@app.command(
    epilog="Example: scdecode train cells.h5ad --layer counts --batch-key donor --gene-likelihood nb --out model/"
)
def train(
    cells: CellsFile,
    out: Annotated[Path, typer.Option(help="Directory to write the model to.", show_default=False)],
    layer: Annotated[
        str | None, typer.Option(help="Layer of raw counts; 'raw' for adata.raw.", show_default="X")
    ] = None,
    use_raw: Annotated[bool, typer.Option("--use-raw", help="Read the counts of adata.raw.")] = False,
    allow_fractional_counts: Annotated[
        bool, typer.Option("--allow-fractional-counts", help="Take counts that are not whole, as SoupX estimates them.")
    ] = False,
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
    max_epochs: Annotated[
        int | None, typer.Option(help="Passes over the cells.", show_default="by their number")
    ] = None,
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

    check_free(out, overwrite)
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
        use_raw=use_raw,
        allow_fractional_counts=allow_fractional_counts,
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


@app.command(epilog="Example: scdecode info model/\n\nExample: scdecode info model/ --json")
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

    cells = "unknown" if facts["n_cells"] is None else f"{facts['n_cells']:,}"
    row("class", f"{facts['class']}, trained by {facts['trained_by']}")
    row("cells x genes", f"{cells} x {facts['n_genes']:,}")
    row("genes", listing(facts["genes"], 8))
    known = facts["n_conditions"] is not None
    row("median library size", f"{facts['median_library_size']:,.0f} counts" if known else _UNKNOWN)
    for key, value in facts["columns"].items():
        if value:
            row(key, value if isinstance(value, str) else ", ".join(value))
    for key, names in facts["categories"].items():
        row(f"{key} ({len(names)} levels)", listing(names, 12))
    row("conditions seen", f"{facts['n_conditions']:,} combinations" if known else _UNKNOWN)
    row("options", ", ".join(f"{key}={value}" for key, value in facts["options"].items()))
    if facts["training"] is not None:
        row("training", ", ".join(f"{k}={v}" for k, v in facts["training"].items() if v is not None))
    row("epochs", f"{facts['epochs']} ({facts['ending']})")
    row("last epoch", ", ".join(f"{key}={value:,.4g}" for key, value in facts["last_epoch"].items()))
    row("reference cells", f"{facts['n_reference']:,}" if facts["n_reference"] else _UNKNOWN)
    Console().print(table)


_UNKNOWN = "unknown: files of scvi-tools do not have it; scdecode convert --reference CELLS adds it"


@app.command(
    epilog="Example: scdecode convert model/ scvi_model/ --to scvi-tools\n\n"
    "Example: scdecode convert scvi_model/ again/ --reference cells.h5ad"
)
def convert(
    source: Annotated[
        Path,
        typer.Argument(help="A model directory, of scvi-tools or of scdecode.", metavar="SOURCE", show_default=False),
    ],
    target: Annotated[
        Path,
        typer.Argument(help="The directory to write.", metavar="TARGET", show_default=False),
    ],
    to: Annotated[str, typer.Option(help="scdecode or scvi-tools.")] = "scdecode",
    prefix: Annotated[
        str | None, typer.Option(help="Of the source's files, where scvi-tools saved them with one.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="The cells that the model was trained on (.h5ad or .zarr), which scvi-tools' files lack: support and "
            "averages over conditions come from them."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with scvi-tools, which has to be installed, before writing.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn a model of scvi-tools into one of scdecode, or the other way. Nothing in the files is executed."""
    from scdecode.cells import open_anndata
    from scdecode.converting import convert as convert_model
    from scdecode.opening import load

    check_free(target, overwrite)
    cells = None if reference is None else open_anndata(reference)
    differences = convert_model(
        source, target, to=to, prefix=prefix, reference=cells, verify=check, overwrite=overwrite
    )
    if differences is not None:
        typer.echo("largest relative difference from scvi-tools, at random points and cells in random conditions:")
        for quantity, row in differences.iterrows():
            typer.echo(f"  {quantity:<20} {row['largest difference']:.1e}   ({int(row['numbers']):,} numbers)")
    typer.echo(f"{target}: {str(load(target)).splitlines()[0]}, in the format of {to}")


def _split_options(pairs: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """``--set`` options, as those of the model and those of the training; values are JSON, or else words."""
    from dataclasses import fields

    from scdecode.config import ModelConfig, TrainConfig

    # these have options of their own
    own = {"use_size_factor", "seed", "max_epochs", "batch_size", "lr", "early_stopping"}
    own |= {"n_latent", "n_layers", "n_hidden", "gene_likelihood", "dispersion"}
    own |= {"decoder", "linear_bias", "classification_ratio", "n_samples_per_label"}  # of LinearSCVI and SCANVI
    of_model, of_training = ({field.name for field in fields(kind)} - own for kind in (ModelConfig, TrainConfig))
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for name, text in read_pairs("--set", pairs).items():
        if name not in of_model | of_training:
            raise InputError(unknown_name("--set", name, sorted(of_model | of_training), "options"))
        try:
            value = json.loads(text)
        except ValueError:
            value = {"True": True, "False": False, "None": None}.get(text, text)
        (model if name in of_model else training)[name] = value
    return model, training
