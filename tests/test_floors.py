"""The house of CONTRIBUTING.md: imports go down, every file has a floor, no extra is loaded, no file is too long."""

import ast
import re
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "scdecode"
EXTRAS = {"matplotlib", "scanpy", "seaborn", "sparse"}  # may be imported inside a function only
PEER = "scvi"  # may not be imported at all, but in a function of the room that compares with it
PARITY = "parity.py"
LONGEST = 500  # lines

Import = tuple[int, str, bool]  # line, dotted name, whether it runs when the file is imported


def read_floors(text: str) -> dict[str, float]:
    """The rows ``| floor | `file`, `file` | concept |`` of a Markdown text; a folder ends with a slash."""
    floors: dict[str, float] = {}
    for row in re.finditer(r"^\| *(\d+(?:\.\d+)?) *\|([^|]*)\|", text, flags=re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", row[2]):
            assert name not in floors, f"{name} has two rows"
            floors[name] = float(row[1])
    return floors


def files(tree: Path) -> list[str]:
    """The Python files under ``tree``, as ``formats/native.py``."""
    return sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*.py"))


def row_of(file: str, floors: dict[str, float]) -> str | None:
    """The row that a file stands in: its own, or that of the nearest folder around it."""
    folders = [f"{folder.as_posix()}/" for folder in Path(file).parents]
    return next((row for row in [file, *folders] if row in floors), None)


def imports(path: Path, package: str) -> Iterator[Import]:
    """Every import in a file: at its top, in a function, under ``TYPE_CHECKING``, or by ``import_module("...")``.

    Names are absolute: ``from .cells import Cells`` in the package ``scdecode`` gives ``scdecode.cells.Cells``.
    """

    def walk(node: ast.AST, runs: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name, runs) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                origin = resolve_name("." * level + (module or ""), package)
                yield from ((node.lineno, f"{origin}.{alias.name}", runs) for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, resolve_name(name, package), runs
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and child in node.body
            yield from walk(child, runs and not later and not typing)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), runs=True)


def package_of(file: str, name: str) -> str:
    """The package that the file ``formats/native.py`` belongs to: ``scdecode.formats``."""
    return ".".join([name, *Path(file).parts[:-1]])


def target(dotted: str, tree: Path) -> str | None:
    """The file that ``scdecode.formats.native.save`` reads, ``formats/native.py``; None if there is none."""
    parts = dotted.split(".")[1:]
    if parts in ([], ["*"]):
        return "__init__.py"
    for length in range(len(parts), 0, -1):
        stem = "/".join(parts[:length])
        for file in (f"{stem}.py", f"{stem}/__init__.py"):
            if (tree / file).is_file():
                return file
    return "__init__.py" if len(parts) == 1 else None  # `from scdecode import name`: a name of the package itself


def misplaced(tree: Path, floors: dict[str, float]) -> list[str]:
    """Files without a row, and rows without a file."""
    found = files(tree)
    homeless = [f"{file} has no row in the table" for file in found if row_of(file, floors) is None]
    used = {row_of(file, floors) for file in found}
    return homeless + [f"{row} has a row in the table, but does not exist" for row in floors if row not in used]


def climbs(tree: Path, floors: dict[str, float]) -> list[str]:
    """Imports inside the package ``tree`` that do not go to a lower floor, or to the same folder."""
    wrong = []
    for file in files(tree):
        row = row_of(file, floors)
        for line, dotted, _ in imports(tree / file, package_of(file, tree.name)):
            if dotted.split(".")[0] != tree.name:
                continue
            other = target(dotted, tree)
            other_row = row_of(other, floors) if other else None
            if other is None:
                wrong.append(f"{file}:{line} imports {dotted}, which is no file")
            elif row is None or other_row is None:
                continue  # misplaced() says so
            elif row == other_row and row.endswith("/"):
                continue  # two files of one folder
            elif floors[other_row] >= floors[row]:
                wrong.append(f"{file}:{line} (floor {floors[row]}) imports {other} (floor {floors[other_row]})")
    return wrong


def foreign(tree: Path) -> list[str]:
    """Imports of the peer anywhere, and of an extra where importing the file would load it."""
    wrong = []
    for file in files(tree):
        for line, dotted, runs in imports(tree / file, package_of(file, tree.name)):
            top = dotted.split(".")[0]
            if (top == PEER and (runs or file != PARITY)) or (top in EXTRAS and runs):
                wrong.append(f"{file}:{line} imports {dotted}")
    return wrong


FLOORS = read_floors((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def test_every_file_has_a_floor_and_every_floor_its_files():
    assert misplaced(SOURCE, FLOORS) == []


def test_no_import_climbs():
    assert climbs(SOURCE, FLOORS) == []


def test_no_file_imports_the_peer_or_loads_an_extra():
    assert foreign(SOURCE) == []


@pytest.mark.parametrize("file", files(SOURCE))
def test_no_file_is_too_long(file):
    n_lines = len((SOURCE / file).read_text(encoding="utf-8").splitlines())
    assert n_lines <= LONGEST, f"{file} has {n_lines} lines: it is asking to be two concepts"


# The checker itself, on a small house.

TABLE = """
| floor | file | its one concept |
| --- | --- | --- |
| 0 | `errors.py` | see `nothing.py` |
| 1 | `cells.py`, `vae.py` | |
| 2 | `formats/` | `native.py` |
| 3 | `__init__.py` | |
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    tree = tmp_path / "scdecode"
    (tree / "formats").mkdir(parents=True)
    contents = {
        "__init__.py": "from scdecode.vae import VAE\n",
        "errors.py": "import ast\n",
        "cells.py": "from scdecode.errors import InputError\n",
        "vae.py": "from . import errors\n",
        "formats/__init__.py": "from scdecode.formats.native import save\n",
        "formats/native.py": "from ..vae import VAE\n",
        "formats/foreign.py": "from .native import save\nimport scdecode.cells\n",
    }
    for file, content in contents.items():
        (tree / file).write_text(content)
    return tree


def test_the_table_is_read_from_its_second_column():
    floors = read_floors(TABLE)
    assert floors == {"errors.py": 0, "cells.py": 1, "vae.py": 1, "formats/": 2, "__init__.py": 3}


def test_a_house_in_order_passes(house):
    floors = read_floors(TABLE)
    assert climbs(house, floors) == misplaced(house, floors) == foreign(house) == []


@pytest.mark.parametrize(
    ("file", "code", "other"),
    [
        ("errors.py", "from scdecode.cells import Cells", "cells.py"),
        ("errors.py", "import scdecode.cells as c", "cells.py"),
        ("errors.py", "from scdecode import cells", "cells.py"),
        ("errors.py", "from .cells import Cells", "cells.py"),
        ("errors.py", "from . import cells", "cells.py"),
        ("errors.py", "def f():\n    from scdecode.cells import Cells", "cells.py"),
        ("errors.py", "class A:\n    async def f(self):\n        from .cells import Cells", "cells.py"),
        ("errors.py", "if TYPE_CHECKING:\n    from scdecode.cells import Cells", "cells.py"),
        ("errors.py", "try:\n    import scdecode.cells\nexcept ImportError:\n    pass", "cells.py"),
        ("errors.py", "importlib.import_module('scdecode.cells')", "cells.py"),
        ("errors.py", "import_module('.cells', __package__)", "cells.py"),
        ("cells.py", "from scdecode.vae import VAE", "vae.py"),
        ("cells.py", "from scdecode.formats.native import save", "formats/native.py"),
        ("cells.py", "from scdecode.formats import save", "formats/__init__.py"),
        ("cells.py", "from scdecode import VAE", "__init__.py"),
        ("cells.py", "import scdecode as sd", "__init__.py"),
        ("formats/native.py", "from .. import VAE", "__init__.py"),
        ("formats/native.py", "from scdecode import *", "__init__.py"),
    ],
)
def test_a_climbing_import_is_found(house, file, code, other):
    (house / file).write_text(code)
    floors = read_floors(TABLE)
    (message,) = climbs(house, floors)
    own, its = floors[row_of(file, floors)], floors[row_of(other, floors)]
    assert re.fullmatch(rf"{file}:\d+ \(floor {own}\) imports {other} \(floor {its}\)", message)


def test_an_import_of_no_file_is_found(house):
    (house / "vae.py").write_text("\nfrom scdecode.kernel import decode")
    assert climbs(house, read_floors(TABLE)) == ["vae.py:2 imports scdecode.kernel.decode, which is no file"]


def test_misplaced_files_are_found(house):
    (house / "cells.py").unlink()
    (house / "training.py").touch()
    assert misplaced(house, read_floors(TABLE)) == [
        "training.py has no row in the table",
        "cells.py has a row in the table, but does not exist",
    ]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import matplotlib.pyplot as plt", True),
        ("try:\n    import scanpy as sc\nexcept ImportError:\n    sc = None", True),
        ("class A:\n    from matplotlib import cm", True),
        ("def f():\n    import matplotlib.pyplot as plt", False),
        ("if TYPE_CHECKING:\n    from matplotlib.axes import Axes", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from matplotlib.axes import Axes", True),
        ("def f():\n    import scvi", True),
        ("from scvi.model import SCVI", True),
        ("import scvision", False),
    ],
)
def test_extras_and_the_peer_are_found(house, code, found):
    (house / "vae.py").write_text(code)
    assert bool(foreign(house)) is found
