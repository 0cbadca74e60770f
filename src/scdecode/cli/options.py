"""Options that several commands share, and their words into arguments."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from scdecode.errors import InputError

Model = Annotated[Path, typer.Argument(help="A model directory.", metavar="MODEL", show_default=False)]
CellsFile = Annotated[
    Path, typer.Argument(help="Cells: an .h5ad file or a .zarr store.", metavar="CELLS", show_default=False)
]
Batch = Annotated[
    list[str] | None,
    typer.Option(
        "--batch",
        help="Batch to decode in; repeat to average over several, as NAME=WEIGHT with weights.",
        show_default="the training average",
    ),
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
    typer.Option(help="Counts of the decoded cell, or 'observed' for the training median.", show_default="10000"),
]
Genes = Annotated[
    list[str] | None,
    typer.Option("--genes", help="Genes to keep, separated by commas; repeatable.", show_default="all"),
]
Draws = Annotated[int | None, typer.Option("--n-samples", help="Draws for the error bars, or of the counts.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
MaxConditions = Annotated[int, typer.Option(help="Combinations of conditions to average over, at most.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Seed = Annotated[int, typer.Option(help="Seed of all that is random.")]


def check_result(out: Path, overwrite: bool) -> None:
    """Raise :class:`InputError` where a result cannot be written there; best known before the work."""
    from scdecode.tables import check_ending

    check_ending(out, (".h5ad", ".zarr", ".csv", ".tsv"))
    check_free(out, overwrite)


def check_free(out: Path, overwrite: bool) -> None:
    """Raise :class:`InputError` where something is there that nobody said may go: it could be the input."""
    if out.exists() and not overwrite:
        raise InputError(f"{out}: it is there already; choose another name, or pass --overwrite")


def conditions(
    batch: list[str] | None,
    labels: list[str] | None,
    categorical: list[str] | None,
    continuous: list[str] | None,
    library_size: str | None,
) -> dict[str, Any]:
    """The arguments of decode that say in which conditions."""
    observed = library_size is None or library_size == "observed"
    return {
        "batch": one_or_several(batch),
        "labels": one_or_several(labels),
        "categorical": read_pairs("--categorical", categorical),
        "continuous": read_numbers(continuous),
        "library_size": library_size if observed else read_number("--library-size", library_size),
    }


def one_or_several(names: list[str] | None) -> str | list[str] | dict[str, float] | None:
    """Return a repeatable option: None, one name, a list to average over, or several ``NAME=WEIGHT`` as weights.

    If a name of the left sides comes twice, or a right side is no number, ``=`` is a part of the names.
    """
    if not names:
        return None
    if len(names) == 1:
        return names[0]
    pairs = [name.rpartition("=") for name in names]
    weights = {left: _weight(right) for left, _, right in pairs}
    known = {left: weight for left, weight in weights.items() if left and weight is not None}
    return known if len(known) == len(names) else names


def _weight(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_pairs(option: str, values: list[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` options, each name once."""
    pairs = {}
    for value in values or []:
        name, equals, right = value.partition("=")
        if not equals or not name:
            raise InputError(f"{option}: {value!r} came, NAME=VALUE was expected")
        if name in pairs:
            raise InputError(f"{option}: {name!r} came twice, once was expected")
        pairs[name] = right
    return pairs


def read_number(option: str, value: str | None) -> float:
    """A number, or an error that names the option."""
    try:
        return float(str(value))
    except ValueError as error:
        raise InputError(f"{option}: {value!r} came, a number was expected") from error


def read_numbers(continuous: list[str] | None) -> dict[str, float]:
    """``NAME=NUMBER`` options of continuous covariates."""
    pairs = read_pairs("--continuous", continuous)
    return {name: read_number(f"--continuous {name}", value) for name, value in pairs.items()}


def split_genes(values: list[str] | None) -> list[str] | None:
    """Return the names in the repeatable option --genes, separated by commas; None if it is not given."""
    if not values:
        return None
    names = [name.strip() for value in values for name in value.split(",") if name.strip()]
    if not names:
        raise InputError(f"--genes: got {','.join(values)!r}, expected names of genes separated by commas")
    return names


@contextmanager
def renamed(options: Mapping[str, str]) -> Iterator[None]:
    """Give the arguments in errors and warnings the names of their options: ``over: ...`` is ``--condition: ...``."""

    def rename(message: Warning | str) -> str:
        place, colon, rest = str(message).partition(":")
        return f"{options.get(place, place)}{colon}{rest}"

    show = warnings.showwarning
    warnings.showwarning = lambda message, *rest, **more: show(rename(message), *rest, **more)
    try:
        yield
    except InputError as error:
        raise type(error)(rename(str(error))) from error
    finally:
        warnings.showwarning = show
