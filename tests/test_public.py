"""What a user gets from ``import scdecode``, and what the import costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import scdecode as sd


def test_public_names_are_there_and_documented() -> None:
    assert len(set(sd.__all__)) == len(sd.__all__) >= 12
    for name in sd.__all__:
        assert inspect.getdoc(getattr(sd, name)), name


@pytest.mark.parametrize("kind", [sd.SCVI, sd.LinearSCVI, sd.SCANVI, sd.Trajectory])
def test_public_methods_are_documented_with_their_parameters(kind: type) -> None:
    for name, method in inspect.getmembers(kind, callable):
        if name.startswith("_"):
            continue
        doc = inspect.getdoc(method) or ""
        assert doc, name
        for parameter in list(inspect.signature(method).parameters)[1:]:
            assert parameter in doc, f"{name}: {parameter}"


def test_import_loads_no_extra_and_no_command_line() -> None:
    code = "import scdecode, sys; print([m for m in {} if m in sys.modules])"
    unwanted = ("matplotlib", "scanpy", "scvi", "sklearn", "numba", "rich", "typer", "scipy.stats", "IPython")
    done = subprocess.run([sys.executable, "-c", code.format(unwanted)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_decode_has_the_signature_of_the_design() -> None:
    parameters = list(inspect.signature(sd.SCVI.decode).parameters)
    promised = [
        *("points", "quantity", "library_size", "batch", "labels", "categorical", "continuous", "genes"),
        *("n_samples", "seed", "out", "chunk_size", "max_conditions", "device"),
    ]
    assert [name for name in parameters if name in promised] == promised
