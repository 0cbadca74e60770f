"""A fresh interpreter that measures something of itself and prints it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def run_child(code: str, *arguments: str) -> list[float]:
    """Run ``code`` in a fresh interpreter; return the numbers on the last line that it prints."""
    return _numbers(["-c", code, *arguments])


def run_script(script: Path, *arguments: str) -> list[float]:
    """The same of a file of this folder, which may import its neighbours."""
    return _numbers([str(script), *arguments])


def child(code: str, *arguments: str) -> Callable[[], float]:
    """A side, for ``timing.alternate``, that is one number of a fresh interpreter."""
    return lambda: run_child(code, *arguments)[0]


def _numbers(arguments: list[str]) -> list[float]:
    safe = [] if arguments[0].endswith(".py") else ["-P"]  # nothing of the working directory is imported
    done = subprocess.run(
        [sys.executable, *safe, "-W", "ignore", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"a measuring child failed: {' '.join(arguments[-6:])}\n{done.stderr}")
    return [float(number) for number in done.stdout.splitlines()[-1].split()]
