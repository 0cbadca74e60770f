"""Numba's files on disk: damaged ones are compiled anew, and a place that cannot be written is no error."""

import importlib.util
import textwrap

import numpy as np
import pytest

pytest.importorskip("numba")

LOOPS = """
from scdecode.kernels.jit import jit

@jit(fastmath=set())
def add(x, y):
    return x + y
"""


@pytest.fixture
def folder(tmp_path):
    """A module with a compiled loop, called once, and its files."""
    (tmp_path / "loops.py").write_text(textwrap.dedent(LOOPS))
    assert call(tmp_path) == "[2.0, 3.0, 4.0] 0"
    assert call(tmp_path) == "[2.0, 3.0, 4.0] 1"
    return tmp_path


def call(folder):
    """Call the loop as a new process would; what it gives, and how often it was found on disk."""
    spec = importlib.util.spec_from_file_location("loops", folder / "loops.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.add(np.arange(3.0), 2.0).tolist()
    return f"{found} {sum(module.add.stats.cache_hits.values())}"


def kept(folder, kind):
    (path,) = (folder / "__pycache__").glob(f"*.{kind}")
    return path


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", ["bit", "truncated", "empty", "other", "appended"])
def test_a_damaged_file_heals(folder, kind, damage):
    path = kept(folder, kind)
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "truncated": data[:middle],
            "empty": b"",
            "other": b"no pickle",
            "appended": data + b"\0",
        }[damage]
    )
    assert call(folder) == "[2.0, 3.0, 4.0] 0"
    assert call(folder) == "[2.0, 3.0, 4.0] 1"


def test_every_part_of_a_file_is_looked_at(folder):
    from scdecode.kernels.cache import _is_whole

    for kind in ("nbi", "nbc"):
        path = kept(folder, kind)
        data = path.read_bytes()
        assert _is_whole(str(path))
        for position in np.linspace(0, len(data) - 1, 60).astype(int):
            path.write_bytes(data[:position] + bytes([data[position] ^ 64]) + data[position + 1 :])
            assert not _is_whole(str(path)), position
        path.write_bytes(data)
        path.rename(path.with_name("other." + kind))
        assert not _is_whole(str(path.with_name("other." + kind)))


def test_a_folder_in_the_place_of_a_file(folder):
    path = kept(folder, "nbc")
    path.unlink()
    path.mkdir()
    for _ in range(2):
        assert call(folder) == "[2.0, 3.0, 4.0] 0"  # it cannot be kept, and that is no error


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    from numba.core.caching import IndexDataCacheFile

    def full(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "loops.py").write_text(textwrap.dedent(LOOPS))
    monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", full)
    assert call(tmp_path) == "[2.0, 3.0, 4.0] 0"


def test_a_place_where_nothing_can_be_kept(tmp_path, monkeypatch):
    from numba.core import caching

    locators = [kind for name, kind in vars(caching).items() if "UserWide" in name]
    assert locators
    (tmp_path / "loops.py").write_text(textwrap.dedent(LOOPS))
    (tmp_path / "__pycache__").touch()  # a file where the folder would be
    for kind in locators:
        monkeypatch.setattr(kind, "ensure_cache_path", full_folder)
    assert call(tmp_path) == "[2.0, 3.0, 4.0] 0"


def full_folder(*_):
    raise PermissionError(13, "Permission denied")
