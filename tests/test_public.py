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


MODULES = ["geometry", "dynamics", "lineages", "datasets", "plot", "likelihoods", "errors"]


@pytest.mark.parametrize("name", ["", *MODULES])
def test_dir_shows_the_public_names_and_no_other(name: str) -> None:
    module = getattr(sd, name) if name else sd
    assert len(set(module.__all__)) == len(module.__all__)
    assert dir(module) == sorted(module.__all__)
    for public in module.__all__:
        assert hasattr(module, public), public
        assert not public.startswith("_")


def test_a_name_is_where_it_is_said_to_be() -> None:
    from importlib import import_module

    from scdecode import _MODULE_OF

    modules = {name for name in sd.__all__ if inspect.ismodule(getattr(sd, name))}
    assert modules == set(MODULES)
    assert set(_MODULE_OF) == set(sd.__all__) - modules
    for name, module in _MODULE_OF.items():
        assert getattr(sd, name) is getattr(import_module(f"scdecode.{module}"), name)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'scdecode' has no attribute 'SVCI'"):
        sd.SVCI  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'SVCI'"):
        from scdecode import SVCI  # noqa: F401


def in_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "from scdecode import *; assert callable(SCVI) and callable(counterfactual) and errors.InputError",
        "import scdecode.counterfactual; import scdecode as sd; assert callable(sd.counterfactual)",
        "from scdecode.counterfactual import PSEUDOCOUNT; from scdecode import counterfactual as c; assert callable(c)",
        "import scdecode.plot; assert callable(scdecode.plot.trends)",
        "import scdecode.model; import scdecode as sd; assert sd.SCVI is scdecode.model.SCVI is sd.SCVI",
        "import scdecode; from importlib.metadata import version as v; assert scdecode.__version__ == v('scdecode')",
        "import scdecode, importlib; importlib.reload(scdecode); assert scdecode.ScdecodeError",
    ],
)
def test_names_that_are_imported_late_are_the_right_ones(code: str) -> None:
    in_new_process(code)


SLOW = ("torch", "anndata", "numba", "pandas", "numpy", "scipy", "h5py", "zarr", "matplotlib")
COMMANDS = ["", "train", "info", "convert", "path", "encode", "decode", "generate", "demo"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_that_is_slow(command: str) -> None:
    code = (
        f"import sys; sys.argv = {['scdecode', *filter(None, [command]), '--help']}\n"
        "from scdecode.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print(); print([name for name in {SLOW} if name in sys.modules])"
    )
    assert in_new_process(code).splitlines()[-1] == "[]"


def test_import_loads_no_extra_and_no_command_line() -> None:
    code = "import scdecode, sys; scdecode.SCVI; scdecode.plot; print([m for m in {} if m in sys.modules])"
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
