"""The command that makes a path through the latent space and says what the genes do along it."""

from __future__ import annotations

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
    renamed,
    split_genes,
)
from scdecode.cli.results import write_decoded, write_path
from scdecode.errors import InputError, listing, unknown_name

_ENDS, _CELLS = "A path between cells", "A path along a pseudotime"
_CONDITIONS, _OUTPUTS = "The same path in several conditions", "More results"


@app.command(
    epilog="Example: scdecode path model/ cells.h5ad --from HSC --to Erythroid --key cell_type --how geodesic "
    "--out path.h5ad --plot path.png\n\nExample: scdecode path model/ cells.h5ad --pseudotime dpt_pseudotime "
    "--out trends.csv --genes-table genes.csv --heatmap cascade.png"
)
def path(
    model: Model,
    cells: CellsFile,
    out: Annotated[Path, typer.Option(help=".h5ad or .zarr (streamed), .csv or .tsv.", show_default=False)],
    start: Annotated[
        str | None, typer.Option("--from", help="Category where the path begins.", rich_help_panel=_ENDS)
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="Category where the path ends.", rich_help_panel=_ENDS)
    ] = None,
    through: Annotated[
        list[str] | None,
        typer.Option("--through", help="Category in between; repeatable, in order.", rich_help_panel=_ENDS),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Column of obs with the categories.", rich_help_panel=_ENDS)] = None,
    how: Annotated[
        str,
        typer.Option(
            help="linear: straight. graph: from cell to cell. geodesic: shortest in the decoder's own metric.",
            rich_help_panel=_ENDS,
        ),
    ] = "linear",
    pseudotime: Annotated[
        str | None, typer.Option(help="Column of obs with a pseudotime of each cell.", rich_help_panel=_CELLS)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Column of obs, or entry of obsm, with lineage weights.", rich_help_panel=_CELLS),
    ] = None,
    lineages: Annotated[
        str | None,
        typer.Option(
            help="What another tool left: palantir, cellrank, dpt, paga, scvelo, slingshot; or auto.",
            rich_help_panel=_CELLS,
        ),
    ] = None,
    lineage: Annotated[
        list[str] | None,
        typer.Option(
            "--lineage", help="One of those lineages; repeatable.", show_default="all", rich_help_panel=_CELLS
        ),
    ] = None,
    n_points: Annotated[int, typer.Option(help="Points on the path.")] = 100,
    no_spread: Annotated[
        bool, typer.Option("--no-spread", help="Decode the bare line, not the cells' spread around it.")
    ] = False,
    batch: Batch = None,
    categorical: Categorical = None,
    continuous: Continuous = None,
    labels: Labels = None,
    quantity: Quantity = "rate",
    library_size: LibrarySize = None,
    genes: Genes = None,
    condition: Annotated[
        str | None,
        typer.Option(
            help="The same path in every level of this: batch, labels or a categorical covariate.",
            rich_help_panel=_CONDITIONS,
        ),
    ] = None,
    levels: Annotated[
        list[str] | None,
        typer.Option(
            "--level",
            help="One of those levels, the first the baseline; repeatable.",
            show_default="all",
            rich_help_panel=_CONDITIONS,
        ),
    ] = None,
    difference: Annotated[
        Path | None,
        typer.Option(
            help="With --condition: differences from the first level, .h5ad or .csv.", rich_help_panel=_CONDITIONS
        ),
    ] = None,
    ensemble: Annotated[
        list[Path] | None,
        typer.Option("--ensemble", help="Another model of the same cells: decoded together; repeatable."),
    ] = None,
    refit: Annotated[
        Path | None,
        typer.Option(
            help="Along a pseudotime: trends refitted to the cells' counts, with their 90 % band; .h5ad or .csv.",
            rich_help_panel=_OUTPUTS,
        ),
    ] = None,
    genes_table: Annotated[
        Path | None,
        typer.Option(help="What each gene does: change, peak, shape, score; .csv or .tsv.", rich_help_panel=_OUTPUTS),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Picture of the trends (.png, .pdf, .svg).", rich_help_panel=_OUTPUTS)
    ] = None,
    heatmap: Annotated[
        Path | None, typer.Option(help="Picture of the cascade of genes.", rich_help_panel=_OUTPUTS)
    ] = None,
    latent: Annotated[
        Path | None, typer.Option(help="Picture of the path among the cells.", rich_help_panel=_OUTPUTS)
    ] = None,
    change: Annotated[
        Path | None, typer.Option(help="Picture of fold change against score.", rich_help_panel=_OUTPUTS)
    ] = None,
    n_samples: Draws = None,
    max_conditions: MaxConditions = 100,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Decode a path: from one category of cells to another, or along a pseudotime."""
    from scdecode import dynamics
    from scdecode import plot as plots
    from scdecode._utils.progress import notice
    from scdecode.cells import open_anndata
    from scdecode.counterfactual import counterfactual
    from scdecode.ensemble import Ensemble
    from scdecode.opening import load
    from scdecode.refitting import refit as refit_trends
    from scdecode.tables import check_ending, write_frame

    check_result(out, overwrite)
    pictures, tables = (plot, heatmap, latent, change), (".csv", ".tsv")
    if any(pictures):
        plots.check_matplotlib()
    wanted: list[tuple[Path | None, tuple[str, ...]]] = [(picture, plots.PICTURES) for picture in pictures]
    wanted += [(genes_table, tables), (refit, (".h5ad", *tables)), (difference, (".h5ad", *tables))]
    for target, endings in wanted:
        if target is not None:
            check_ending(target, endings)
            check_free(target, overwrite)
    _check_options(condition, levels, difference, (genes_table, heatmap, change), out, quantity)
    opened, adata = load(model), open_anndata(cells)
    asked = conditions(batch, labels, categorical, continuous, library_size)
    ends = {"--from": start, "--to": end, "--through": through, "--key": key}
    ordered = {"--pseudotime": pseudotime, "--weights": weights, "--lineages": lineages, "--lineage": lineage}
    _check_way(ends, ordered, how)
    if refit is not None and start is not None:
        raise InputError("--refit: it came with --from; the counts of cells tell a trend where each has a pseudotime")
    if ensemble and (condition is not None or refit is not None):
        raise InputError("--ensemble: got several models with --condition or --refit, expected one model")
    if key is not None and key not in adata.obs:
        raise InputError(unknown_name("--key", key, [str(name) for name in adata.obs], "columns of obs"))
    fixed = {"batch": batch, "labels": labels, **asked["categorical"]}
    if condition is not None and fixed.get(condition):
        raise InputError(f"--condition: got {condition!r} with a value of its own; say which levels by --level")
    places = [name for name in (start, *(through or []), end) if name is not None]

    def make(one: Any) -> Any:
        """The path in the latent space of a model."""
        if key is not None and places:
            return _between(one, adata, places, key, n_points, how, not no_spread, asked)
        return _along(one, adata, pseudotime, weights, lineages, lineage, n_points, not no_spread)

    models = [opened, *(load(other) for other in ensemble or [])]
    paths = [make(one) for one in models]
    made = paths[0]
    whole, where = (Ensemble(models), paths) if ensemble else (opened, made)
    for name in ("length", "straight_length", "ratio"):
        if name in made.report and how == "geodesic":
            typer.echo(f"{name.replace('_', ' ')}: {made.report[name]:.4g}")
    chosen = split_genes(genes)
    options = {"quantity": quantity, "n_samples": n_samples, "max_conditions": max_conditions, "seed": seed, **asked}
    if condition is not None:
        options.pop(condition, None)
        with renamed({"over": "--condition", "levels": "--level"}):
            compared = counterfactual(opened, made, condition, levels=levels, genes=chosen, device=device, **options)
        expression = compared.expression
        write_path(expression, out, overwrite=overwrite)
        if difference is not None:
            write_path(compared.difference, difference, overwrite=overwrite)
    else:
        options_of_decode = {"genes": chosen, "device": device, **options}
        if out.suffix in (".h5ad", ".zarr") or quantity == "counts":
            expression = write_decoded(whole, where, out, overwrite=overwrite, **options_of_decode)
        else:
            expression = whole.decode(where, **options_of_decode)
            write_path(expression, out, overwrite=overwrite)
    table = None
    if genes_table is not None or heatmap is not None or change is not None:
        with notice("what each gene does along the path ..."):
            table = dynamics.gene_dynamics(whole, where, genes=chosen, **options)
    if genes_table is not None and table is not None:
        write_frame(genes_table, table, overwrite=overwrite)
        typer.echo(f"{genes_table}: {len(table):,} rows, a gene each")
    if refit is not None:
        times, shares = _ordered(adata, pseudotime, weights, lineages, lineage)
        options = {name: value for name, value in options.items() if name not in ("n_samples", "max_conditions")}
        refitted = refit_trends(opened, made, adata, pseudotime=times, weights=shares, genes=chosen, **options)
        write_path(refitted, refit, overwrite=overwrite)
    shown = chosen or plots.most_changing(expression, 6)
    if plot is not None:
        behind = {} if start is not None else _observed(opened, adata, pseudotime, weights, lineages, lineage)
        plots.save(plots.trends(expression, shown, **behind), plot, overwrite=overwrite)
        typer.echo(f"{plot}: trends")
    if heatmap is not None:
        first = None if made.lineages is None else made.lineages[0]
        ordered_genes = dynamics.cascade(table, n_top=40, lineage=first)
        if len(ordered_genes):
            plots.save(plots.heatmap(expression, ordered_genes), heatmap, overwrite=overwrite)
            typer.echo(f"{heatmap}: cascade")
        else:
            typer.echo(f"note: {heatmap} is not drawn, as no gene changes by more than the error bars", err=True)
    if latent is not None:
        colour = adata.obs[key] if key is not None else adata.obs[pseudotime] if pseudotime is not None else None
        shown_cells = opened.get_latent_representation(adata)
        view = plots.latent(opened, made, cells=shown_cells, colour=colour)
        plots.save(view, latent, overwrite=overwrite)
        typer.echo(f"{latent}: cells and path")
    if change is not None:
        plots.save(plots.change(table), change, overwrite=overwrite)
        typer.echo(f"{change}: fold change against score")


def _ordered(
    adata: Any, pseudotime: str | None, weights: str | None, source: str | None, lineage: list[str] | None
) -> tuple[Any, Any]:
    """The pseudotime and the weight of each cell; of several lineages, a column each."""
    import pandas as pd

    from scdecode.lineages import read_lineages

    found = read_lineages(adata, source or "auto", pseudotime=pseudotime, weights=weights, lineages=lineage)
    if len(found) == 1:
        only = next(iter(found.values()))
        return only.pseudotime_n, only.weight_n
    columns = [{name: getattr(one, what) for name, one in found.items()} for what in ("pseudotime_n", "weight_n")]
    return tuple(pd.DataFrame(part, index=adata.obs_names) for part in columns)


def _observed(
    model: Any,
    adata: Any,
    pseudotime: str | None,
    weights: str | None,
    source: str | None,
    lineage: list[str] | None,
) -> dict[str, Any]:
    """The cells of the lineages, their times and lineages: those that weigh at least half of what the heaviest does."""
    import numpy as np

    from scdecode.lineages import read_lineages

    found = read_lineages(adata, source or "auto", pseudotime=pseudotime, weights=weights, lineages=lineage)
    weight_nl = np.stack([one.weight_n / one.weight_n.max() for one in found.values()], axis=1)
    own_n = weight_nl.argmax(axis=1)
    members = weight_nl.max(axis=1) >= 0.5
    time_n = np.stack([one.pseudotime_n for one in found.values()], axis=1)[np.arange(len(own_n)), own_n]
    cells, columns = adata[members], model.schema.columns
    shown = {"cells": cells, "time": time_n[members], "layer": columns.layer}
    if columns.size_factor_key is None:  # there may be more genes than the model has
        own = cells[:, list(model.schema.genes)]
        shown["library_size"] = np.asarray((own.X if columns.layer is None else own.layers[columns.layer]).sum(axis=1))
        shown["library_size"] = shown["library_size"].reshape(-1)
    else:
        shown["library_size"] = columns.size_factor_key
    if len(found) > 1:
        shown["lineage"] = np.asarray(list(found))[own_n[members]]
    return shown


def _check_options(
    condition: Any, levels: Any, difference: Any, of_genes: tuple[Any, ...], out: Path, quantity: str
) -> None:
    """Raise :class:`InputError` for options that do not go together."""
    if quantity == "counts" and (condition is not None or any(option is not None for option in of_genes)):
        raise InputError(
            "--quantity: got counts with --condition, --genes-table, --heatmap or --change; expected rate, scale or "
            "mean"
        )
    if condition is None:
        for option, value in (("--level", levels), ("--difference", difference)):
            if value:
                raise InputError(f"{option}: got it without --condition; pass what changes, such as --condition batch")
    else:
        if any(option is not None for option in of_genes):
            raise InputError(
                "--condition: got it with --genes-table, --heatmap or --change, which show one condition; run these by "
                "--batch or --categorical, once for each condition"
            )
        if out.suffix == ".zarr":
            raise InputError(
                f"--out: got {str(out)!r} with --condition, expected a name that ends in .h5ad, .csv or .tsv"
            )


def _check_way(ends: dict[str, Any], ordered: dict[str, Any], how: str) -> None:
    """Raise :class:`InputError` unless a path is asked for in one way, and in full."""
    given, others = ([option for option, value in group.items() if value] for group in (ends, ordered))
    if not given and not others:
        raise InputError(
            "path: nothing says where it goes; pass --from, --to and --key for a path between categories of cells, "
            "or --pseudotime, or --lineages auto"
        )
    if others and how != "linear":
        raise InputError(
            f"--how: {how!r} came with {others[0]}; a path along a pseudotime runs through its cells: leave it out"
        )
    through_cells = [option for option in given if option != "--key"]
    if through_cells and others:
        raise InputError(
            f"path: {through_cells[0]} and {others[0]} came; a path goes from category to category, or along one"
        )
    missing = [option for option in ("--from", "--to", "--key") if option not in given]
    if through_cells and missing:
        raise InputError(
            f"path: {listing(given)} came without {listing(missing)}; all of --from, --to, --key were expected"
        )
    if not through_cells and "--pseudotime" not in others and "--lineages" not in others:
        came = (given + others)[0]
        raise InputError(f"path: {came} came alone; --from and --to, --pseudotime or --lineages was expected with it")


def _between(
    model: Any, adata: Any, names: list[str], key: str, n_points: int, how: str, spread: bool, asked: dict[str, Any]
) -> Any:
    from scdecode.joining import cells_of_groups
    from scdecode.trajectory import Trajectory

    options = ["--from", *["--through"] * (len(names) - 2), "--to"]
    places = cells_of_groups(model, adata, names, key, options)
    return Trajectory.through(model, places, n_points, how, spread=spread, **asked)


def _along(
    model: Any,
    adata: Any,
    pseudotime: str | None,
    weights: str | None,
    source: str | None,
    lineage: list[str] | None,
    n_points: int,
    spread: bool,
) -> Any:
    from scdecode.trajectory import Trajectory

    return Trajectory.from_lineages(
        model,
        adata,
        source or "auto",
        pseudotime=pseudotime,
        weights=weights,
        lineages=lineage,
        n_points=n_points,
        spread=spread,
    )
