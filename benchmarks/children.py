"""A fresh interpreter that measures something of itself and prints it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable


def run_child(code: str, *arguments: str) -> list[float]:
    """Run ``code`` in a fresh interpreter; return the numbers on the last line that it prints."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"a measuring child failed:\n{done.stderr}")
    return [float(number) for number in done.stdout.splitlines()[-1].split()]


def child(code: str, *arguments: str) -> Callable[[], float]:
    """A side, for ``timing.alternate``, that is one number of a fresh interpreter."""
    return lambda: run_child(code, *arguments)[0]
