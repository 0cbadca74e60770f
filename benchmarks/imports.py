"""What importing costs, in fresh interpreters."""

from __future__ import annotations

import peer
from asked import Asked
from children import child
from report import Row, Section
from timing import alternate

METHOD = (
    "Seconds that the import takes in a fresh interpreter, its files in the page cache. torch and anndata are what a "
    "user of either package imports anyway."
)
TAKES = ()
CODE = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def measure(asked: Asked) -> Section:
    sides = {name: child(CODE.format(name)) for name in ("scdecode", "torch, anndata", "scvi")}
    found = alternate(sides, 1 if asked.quick else 11)
    ours = found["scdecode"]
    rows = [
        Row("import scdecode", "s", ours, found["torch, anndata"], "import torch, anndata", at_most=1.2),
        Row(
            "import scdecode",
            "s",
            ours,
            found["scvi"],
            f"import scvi ({peer.NAME})",
            at_most=1.0,
            facts={"room": "import"},
        ),
    ]
    return Section("Import", rows, METHOD)
