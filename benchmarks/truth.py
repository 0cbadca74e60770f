"""True expression, measured: what is decoded along paths, against expression that is known from elsewhere.

    python benchmarks/truth.py                            # all; about 20 minutes on two cores
    python benchmarks/truth.py --only mixtures,worm
    python benchmarks/truth.py --quick                    # few and small, to see that it runs

Prints tables in markdown, and writes them with their numbers to truth.json and truth.md in --out. The rooms mixtures,
worm and a part of support need the folder of real cells, ../shared/data or SCDECODE_DATA.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path

import torch
from truth_tables import DATA, QUICK, Outcome, Sizes

from scdecode.errors import SupportWarning

ROOMS = ("simulated", "mixtures", "worm", "support")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(ROOMS), metavar="NAMES", help="some of %(default)s")
    parser.add_argument("--quick", action="store_true", help="small and few; writes nothing without --out")
    parser.add_argument("--seeds", type=int, help="of the simulated cells (default 3)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder of truth.json and truth.md (default: this one)")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := [name for name in names if name not in ROOMS]:
        parser.error(f"--only: there is no {', '.join(unknown)}; there are {', '.join(ROOMS)}")
    real = [name for name in names if name in ("mixtures", "worm")]
    if real and not DATA.is_dir():
        parser.error(f"{DATA}: no such folder, which {', '.join(real)} needs; set SCDECODE_DATA")
    sizes = QUICK if given.quick else Sizes()
    if given.seeds is not None:
        sizes = dataclasses.replace(sizes, seeds=given.seeds)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore", SupportWarning)  # bare lines and points far from cells are asked for here
    outcomes = {}
    for name in names:
        start = time.perf_counter()
        outcome: Outcome = importlib.import_module(f"truth_{name}").run(sizes)
        outcomes[name] = outcome
        print(f"\n## {outcome.title}\n\n{outcome.text}\n\n{outcome.tables}\n")
        print(f"({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)
    folder = given.out or (None if given.quick else Path(__file__).parent)
    if folder is not None:
        write(outcomes, folder, " ".join(["benchmarks/truth.py", *sys.argv[1:]]))


def write(outcomes: dict[str, Outcome], folder: Path, command: str) -> None:
    """Put the rooms into truth.json, beside those measured before, and all of them into truth.md."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "truth.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for name, outcome in outcomes.items():
        date = datetime.now(UTC).isoformat(timespec="minutes")
        known[name] = dataclasses.asdict(outcome) | {"command": command, "date": date}
    path.write_text(json.dumps(known, indent=1) + "\n")
    parts = [
        f"## {known[name]['title']}\n\n{known[name]['text']}\n\n{known[name]['tables']}\n"
        for name in ROOMS
        if name in known
    ]
    (folder / "truth.md").write_text(
        "# True expression, measured\n\nMade by `benchmarks/truth.py`.\n\n" + "\n".join(parts)
    )


if __name__ == "__main__":
    main()
