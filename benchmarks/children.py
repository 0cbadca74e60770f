"""A fresh interpreter that measures something of itself and prints it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable


def child(code: str, *arguments: str) -> Callable[[], float]:
    """A side that runs ``code`` in a fresh interpreter and returns the number on the last line that it prints."""

    def side() -> float:
        command = [sys.executable, "-P", "-W", "ignore", "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"a measuring child failed:\n{done.stderr}")
        return float(done.stdout.split()[-1])

    return side
