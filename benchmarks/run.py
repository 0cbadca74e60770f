"""Speed and memory beside scvi-tools: measure, print tables with ratios, write results.md and results.json.

Run by ``make bench`` in the environment that has scvi-tools; ``make bench ARGS="--only training,decode"`` for a part.
"""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

import peer
import torch
from report import HERE, record

ROOMS = {
    "training": "training",
    "decode": "decoding",
    "memory": "memory",
    "import": "imports",
    "load": "loading",
}
"""The name of each section and the file that measures it. Held-out likelihood has a command of its own: heldout.py."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="small and few, to see that it runs; writes nothing without --out"
    )
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(ROOMS)}")
    parser.add_argument("--out", type=Path, help="folder of results.md and results.json (default: beside this script)")
    parser.add_argument("--threads", type=int, default=2, help="of both packages (default 2)")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(ROOMS)
    unknown = [name for name in names if name not in ROOMS]
    if unknown:
        parser.error(f"--only: there is no {', '.join(unknown)}; there are {', '.join(ROOMS)}")
    torch.set_num_threads(given.threads)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # for the children
    peer.quiet()
    folder = given.out or (None if given.quick else HERE)  # the figures of a quick run are no results
    for name in names:
        section = importlib.import_module(ROOMS[name]).measure(quick=given.quick)
        command = f"benchmarks/run.py --only {name} --threads {given.threads}{' --quick' if given.quick else ''}"
        record(name, section, command, folder=folder)


if __name__ == "__main__":
    main()
