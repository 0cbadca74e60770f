"""Files and folders that appear whole or not at all, whatever breaks off their writing."""

import errno
import hashlib
import os
import subprocess
import sys

import pytest

from scdecode import files
from scdecode.errors import OutputError
from scdecode.files import replacing, sha256


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(path, text="new", overwrite=True):
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text(text)


def write_folder(path):
    with replacing(path, overwrite=True) as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("new")


def test_a_new_file(tmp_path):
    write(tmp_path / "x.txt")
    assert (tmp_path / "x.txt").read_text() == "new"
    assert names(tmp_path) == ["x.txt"]


def test_the_temporary_name_is_hidden_and_keeps_the_ending(tmp_path):
    with replacing(tmp_path / "x.h5ad") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".x.h5ad.")
        assert temporary.name.endswith(".tmp.h5ad")
        temporary.touch()
        assert names(tmp_path) == [temporary.name, ".x.h5ad.lock"]
    assert names(tmp_path) == ["x.h5ad"]


def test_a_file_in_folders_that_are_not_there_yet(tmp_path):
    write(tmp_path / "a" / "b" / "x")
    assert (tmp_path / "a" / "b" / "x").read_text() == "new"


def test_a_file_is_replaced(tmp_path):
    (tmp_path / "x").write_text("old")
    write(str(tmp_path / "x"))
    assert (tmp_path / "x").read_text() == "new"
    assert names(tmp_path) == ["x"]


def test_a_folder_is_replaced(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").write_text("old")
    (tmp_path / "x" / ".DS_Store").touch()  # what macOS leaves wherever one looks
    write_folder(tmp_path / "x")
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["file"]
    assert (tmp_path / "x" / "file").read_text() == "new"


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").write_text("old")
    (tmp_path / "x" / "thesis.tex").write_text("mine")
    with pytest.raises(
        OutputError, match=r"x: it holds \['thesis.tex'\], which replacing it would remove; nothing was"
    ):
        write_folder(tmp_path / "x")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "file").read_text() == "old"
    assert (tmp_path / "x" / "thesis.tex").read_text() == "mine"


def test_a_folder_is_replaced_where_names_cannot_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    test_a_folder_is_replaced(tmp_path)


def test_a_system_that_cannot_exchange_names(tmp_path, monkeypatch):
    def fail(name):
        raise OSError("no such library")

    monkeypatch.setattr(files.ctypes, "CDLL", fail)
    test_a_folder_is_replaced(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="the exchange of two names is Linux's")
def test_there_is_no_moment_without_a_folder(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("two steps, and a moment without a folder between them"))
    write_folder(tmp_path / "x")
    assert names(tmp_path / "x") == ["file"]


def test_what_is_there_is_kept_unless_it_may_be_replaced(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(OutputError, match=r"x: it is there already; .*overwrite=True"):
        write(tmp_path / "x", overwrite=False)
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("old")
    with pytest.raises(OutputError, match="it is a folder, the name of a file was expected"):
        write(tmp_path / "x")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "mine").read_text() == "old"


def test_a_folder_does_not_replace_a_file(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(OutputError, match="it is a file, the name of a folder was expected; nothing was changed"):
        write_folder(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "there").symlink_to("elsewhere")
    (tmp_path / "x").symlink_to(tmp_path / "y")
    write(tmp_path / "x")
    write_folder(tmp_path / "there")
    assert (tmp_path / "there").is_symlink()
    assert (tmp_path / "x").is_symlink()
    assert names(tmp_path / "elsewhere") == ["file"]
    assert (tmp_path / "y").read_text() == "new"
    assert names(tmp_path) == ["elsewhere", "there", "x", "y"]


def test_the_folder_where_one_is(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    write_folder(".")
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["file"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError("a bug"), SystemExit(1)])
@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
def test_the_old_one_is_intact_after_a_failure(tmp_path, failure, kind):
    (tmp_path / "x").write_text("old")

    def break_off():
        with replacing(tmp_path / "x", overwrite=True) as temporary:
            if kind == "folder":
                temporary.mkdir()
                (temporary / "half").write_text("ne")
            elif kind == "file":
                temporary.write_text("ne")
            raise failure

    with pytest.raises(failure if isinstance(failure, type) else type(failure)):
        break_off()
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; nothing was changed; make room"),
        (errno.EDQUOT, "the disk is full; nothing was changed; make room"),
        (errno.EACCES, "no permission to write there; nothing was changed; choose a folder of your own"),
        (errno.EROFS, "no permission to write there"),
        (errno.EIO, "it cannot be written .*Input/output error.*nothing was changed"),
    ],
)
def test_each_failure_of_the_system_has_its_message(tmp_path, number, message):
    (tmp_path / "x").write_text("old")

    def fail():
        with replacing(tmp_path / "x", overwrite=True) as temporary:
            temporary.write_text("ne")
            raise OSError(number, os.strerror(number))

    with pytest.raises(OutputError, match=rf"x: {message}") as caught:
        fail()
    assert isinstance(caught.value.__cause__, OSError)
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_an_error_of_ours_inside_passes_through(tmp_path):
    with pytest.raises(OutputError, match=r"^mine$"), replacing(tmp_path / "x"):
        raise OutputError("mine")


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", [1, 2])
def test_a_failure_between_two_renames_brings_the_old_folder_back(tmp_path, monkeypatch, failure, step):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").write_text("old")
    steps, rename = [], os.rename

    def fail(one, other):
        steps.append((one, other))
        if len(steps) == step:
            raise failure
        rename(one, other)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        write_folder(tmp_path / "x")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "file").read_text() == "old"


def test_a_failure_of_the_last_rename_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("old")

    def fail(one, other):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="the disk is full"):
        write(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_killed_run_leaves_the_old_one_and_nothing_that_looks_finished(tmp_path):
    (tmp_path / "x.h5ad").write_text("old")
    code = (
        "import os, sys\nfrom scdecode.files import replacing\n"
        "with replacing(sys.argv[1], overwrite=True) as temporary:\n    temporary.write_text('ne')\n    os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.h5ad")])
    assert done.returncode == 9
    assert (tmp_path / "x.h5ad").read_text() == "old"
    assert all(name.startswith(".") for name in names(tmp_path) if name != "x.h5ad")


@pytest.mark.parametrize("below", ["x", "a/x"])
def test_a_place_below_a_file(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"it cannot be written .*file"):
        write(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(OutputError, match="it cannot be written"):
        write(tmp_path / ("x" * 300))
    assert names(tmp_path) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc")
def test_a_folder_where_nobody_may_write():
    with pytest.raises(OutputError, match="/proc/x: it cannot be written"):
        write("/proc/x")


def test_the_root():
    for way in (write, write_folder):
        with pytest.raises(OutputError, match="/: it is the root of the file system; nothing was changed"):
            way("/")


@pytest.fixture
def full_disk(tmp_path):
    """A disk with no room for more than a page; needs the right to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(full_disk):
    (full_disk / "x").write_text("old")
    with pytest.raises(OutputError, match="x: the disk is full; nothing was changed"):
        write(full_disk / "x", "new" * 100_000)
    assert (full_disk / "x").read_text() == "old"
    assert names(full_disk) == ["x"]


def test_a_model_on_a_full_disk(full_disk, model):
    with pytest.raises(OutputError, match="the disk is full"):
        model.save(full_disk / "model")
    assert names(full_disk) == []


def test_the_digest(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()
