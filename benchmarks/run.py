"""Speed and memory beside scvi-tools: measure, print tables with ratios, keep them in results.json and README.md.

Run by ``make bench`` in the environment that has scvi-tools. A part, and one row of a grid:

    make bench ARGS="--only training,decode"
    make bench ARGS="--only training --genes 2000 --likelihood nb --nonzero 8 --threads 2"
"""

from __future__ import annotations

import argparse
import importlib
import os
import warnings
from pathlib import Path

import draw
import peer
import torch
from asked import DEFAULT_THREADS, Asked
from page import write_page
from report import HERE, read_results, record

from scdecode.errors import TrainingWarning

ROOMS = {
    "training": "training",
    "encode": "encoding",
    "decode": "decoding",
    "point": "point",
    "memory": "memory",
    "import": "imports",
    "load": "loading",
    "roofline": "roofline",
    "growth": "growth",
    "paths": "trajectories",
}
"""The name of each section and the file that measures it. heldout.py and labels.py have commands of their own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="small and few, to see that it runs; writes nothing without --out"
    )
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(ROOMS)}")
    parser.add_argument("--out", type=Path, help="folder of results.json, README.md and pictures (default: this one)")
    parser.add_argument("--draw", action="store_true", help="measure nothing: tables and pictures from results.json")
    part = parser.add_argument_group("a part of a grid", "writes nothing without --out")
    part.add_argument("--genes", type=int, metavar="N")
    part.add_argument("--likelihood", choices=("nb", "zinb"))
    part.add_argument("--nonzero", type=int, metavar="PER_CENT")
    part.add_argument("--threads", type=int, help=f"of both packages (default {DEFAULT_THREADS}; of a grid, 1 and 2)")
    given = parser.parse_args()

    asked = Asked(given.quick, given.genes, given.likelihood, given.nonzero, given.threads)
    if given.draw:
        if given.only or asked != Asked():
            parser.error("--draw: measures nothing, so that it goes with --out alone")
        _show(given.out or HERE)
        return
    names = given.only.split(",") if given.only else list(ROOMS)
    unknown = [name for name in names if name not in ROOMS]
    if unknown:
        parser.error(f"--only: there is no {', '.join(unknown)}; there are {', '.join(ROOMS)}")
    rooms = {name: importlib.import_module(ROOMS[name]) for name in names}
    options = [name for name in ("genes", "likelihood", "nonzero", "threads") if getattr(given, name) is not None]
    for name, room in rooms.items():
        for option in options:
            if option not in room.TAKES:
                takes = ", ".join(f"--{one}" for one in room.TAKES) or "none of these options"
                parser.error(f"--{option}: {name} has no such side; it takes {takes}; choose others with --only")
            if isinstance(getattr(given, option), int) and getattr(given, option) < 1:
                parser.error(f"--{option}: {getattr(given, option)} came, 1 or more was expected")

    peer.quiet()
    warnings.simplefilter("error", TrainingWarning)  # without its compiled loops scdecode is not what is measured
    folder = given.out or (None if given.quick or asked.is_part else HERE)  # what is small or a part is no record
    for name, room in rooms.items():
        torch.set_num_threads(asked.threads or DEFAULT_THREADS)
        os.environ["OMP_NUM_THREADS"] = str(asked.threads or DEFAULT_THREADS)  # for the children
        command = " ".join(
            [
                f"benchmarks/run.py --only {name}",
                *(["--quick"] if given.quick else []),
                *(f"--{option} {getattr(given, option)}" for option in options),
            ]
        )
        record(name, room.measure(asked), command, folder=folder)
    if folder is not None:
        _show(folder)


def _show(folder: Path) -> None:
    results = read_results(folder)
    write_page(results, folder)
    for line in draw.pictures(results, folder):
        print(line)


if __name__ == "__main__":
    main()
