"""Every writer: what is there is replaced only when asked, and only files and folders; failures change nothing."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from small_models import make_adata, make_model

import scdecode as sd
from scdecode import files
from scdecode._utils import locks
from scdecode.errors import OutputError, ScdecodeError
from scdecode.files import replacing
from scdecode.results import write_h5ad
from scdecode.tables import write_frame, write_latents, write_table

MODEL = make_model(make_adata(40, 12), epochs=1)
POINTS = MODEL.reference_latents()[:3]


def picture(path, overwrite):
    ax = sd.plot.history(MODEL)
    sd.plot.save(ax, path, overwrite=overwrite)


WRITERS = {
    "decode h5ad": ("x.h5ad", lambda p, o: MODEL.decode(POINTS, batch="batch_1", out=p, overwrite=o)),
    "decode zarr": ("x.zarr", lambda p, o: MODEL.decode(POINTS, batch="batch_1", out=p, overwrite=o)),
    "generate": ("x.h5ad", lambda p, o: MODEL.generate(3, out=p, overwrite=o)),
    "save": ("model", lambda p, o: MODEL.save(p, overwrite=o)),
    "save with cells": ("model", lambda p, o: MODEL.save(p, overwrite=o, save_anndata=True)),
    "h5ad": ("x.h5ad", lambda p, o: write_h5ad(make_adata(5, 6), p, overwrite=o)),
    "table": ("x.csv", lambda p, o: write_table(p, MODEL.decode(POINTS, batch="batch_1"), overwrite=o)),
    "frame": ("x.tsv", lambda p, o: write_frame(p, pd.DataFrame({"a": [1]}), overwrite=o)),
    "latents": ("x.npy", lambda p, o: write_latents(p, POINTS, make_adata(3, 6), "z", overwrite=o)),
    "picture": ("x.png", picture),
}


@pytest.fixture(params=WRITERS)
def writer(request):
    return WRITERS[request.param]


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_there_is_replaced_when_asked(writer, tmp_path):
    name, write = writer
    write(tmp_path / name, False)
    with pytest.raises(OutputError, match=r"it is there already; .*overwrite=True"):
        write(tmp_path / name, False)
    write(tmp_path / name, True)
    assert left(tmp_path) == [name]


def test_a_file_of_another_program_is_kept(writer, tmp_path):
    name, write = writer
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="it is there already"):
        write(tmp_path / name, False)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a device"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_neither_file_nor_folder_is_kept(writer, tmp_path, kind, overwrite, monkeypatch):
    name, write = writer
    place = tmp_path / name
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "socket":
            bound.bind(name)
        else:
            place.symlink_to("/dev/null")
        before = os.stat(place)
        with pytest.raises(OutputError, match=r"it is a (pipe|socket|device), the name of a file"):
            write(place, overwrite)
    assert (os.stat(place).st_mode, os.stat(place).st_ino) == (before.st_mode, before.st_ino)
    assert left(tmp_path) == [name]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["x" * 300, "a\0b", "file/below", "x" * 5000, "\ud800"])
def test_names_that_cannot_be(writer, tmp_path, overwrite, place):
    name, write = writer
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ScdecodeError):
        write(tmp_path / (place + os.path.splitext(name)[1]), overwrite)
    assert left(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_missing_folder_is_made_and_removed_after_a_failure(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "a" / "b" / "x"):
        raise RuntimeError("a bug")
    assert left(tmp_path) == []


@pytest.mark.parametrize("length", [200, 230, 250, 255])
def test_the_longest_names(tmp_path, length):
    write_frame(tmp_path / ("x" * (length - 4) + ".csv"), pd.DataFrame({"a": [1]}))
    assert [len(name) for name in left(tmp_path)] == [length]


# -- other processes


def test_two_writers_of_one_file(tmp_path):
    with replacing(tmp_path / "x") as temporary:
        with pytest.raises(OutputError, match="x: another process is writing it; wait until it has ended"):
            replacing(tmp_path / "x").__enter__()
        write_frame(tmp_path / "x.csv", pd.DataFrame({"a": [1]}))  # another name
        temporary.write_text("first")
    assert (tmp_path / "x").read_text() == "first"
    assert left(tmp_path) == ["x", "x.csv"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def fail(self):
        raise NotImplementedError

    monkeypatch.setattr(locks.FileLock, "acquire", fail)
    write_frame(tmp_path / "x.csv", pd.DataFrame({"a": [1]}))
    assert left(tmp_path) == ["x.csv"]


def test_what_killed_runs_left_is_removed(tmp_path):
    ours = [".x.csv.0123abcd.tmp.csv", ".x.csv.0123abce.tmp.csv"]
    others = [".x.csv.lock2", ".y.csv.0123abcd.tmp.csv", ".x.csv.tmp", "x.csv.0123abcd.tmp.csv"]
    for name in ours + others:
        (tmp_path / name).touch()
    (tmp_path / ".x.csv.0123abcf.tmp.csv").mkdir()
    write_frame(tmp_path / "x.csv", pd.DataFrame({"a": [1]}))
    assert left(tmp_path) == sorted(["x.csv", *others])


def test_what_a_living_run_writes_is_kept(tmp_path):
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("alive")
        with pytest.raises(OutputError, match="another process"):
            replacing(tmp_path / "x").__enter__()
        assert temporary.read_text() == "alive"


def test_a_kill_between_two_renames(tmp_path, monkeypatch):
    """Where names cannot be exchanged, there is a moment without the folder."""
    MODEL.save(tmp_path / "model")
    os.rename(tmp_path / "model", tmp_path / ".model.0123abcd.old")
    (tmp_path / ".model.0123abcd.tmp").mkdir()
    sd.load(tmp_path / "model")
    os.rename(tmp_path / "model", tmp_path / ".model.0123abcd.old")
    with pytest.raises(OutputError, match="it is there already"):
        MODEL.save(tmp_path / "model")
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    MODEL.save(tmp_path / "model", overwrite=True)
    assert left(tmp_path) == ["model"]


# -- full disks and signals, in processes of their own


def run(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


LIMITS = """
import gc, os, resource, signal, sys
import numpy as np, pandas as pd, scipy.sparse as sp, anndata as ad
import scdecode as sd
from scdecode.results import write_h5ad

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = sys.argv[1]
model = sd.SCVI.load(f"{folder}/model")
rng = np.random.default_rng(0)
obs = pd.DataFrame({"s": [str(x) for x in rng.normal(size=800)]}, index=[f"c{i}" for i in range(800)])
big = ad.AnnData(sp.random(800, 300, 0.3, format="csr", random_state=0), obs=obs)
def save_model(path):
    model.save(path, overwrite=True, save_anndata=True)
def compressed(path):
    write_h5ad(big, path + ".h5ad", compression="gzip")
def plain(path):
    write_h5ad(big, path + ".h5ad")
for limit in (0, 100, 3_000, 20_000, 70_000, 200_000, 5_000_000):
    for write in (save_model, compressed, plain):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write(f"{folder}/x")
            outcome = "written"
        except sd.errors.OutputError as error:
            outcome = "OutputError"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        gc.collect()
        print(limit, write.__name__, outcome, sorted(n for n in os.listdir(folder) if n != "model"))
        for name in ("x", "x.h5ad"):
            path = f"{folder}/{name}"
            if os.path.isdir(path):
                sd.SCVI.load(path)
            elif os.path.exists(path):
                ad.io.read_h5ad(path)
                os.remove(path)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the size of files")
def test_hdf5_survives_a_disk_that_fills_up_anywhere(tmp_path):
    MODEL.save(tmp_path / "model", save_anndata=True)
    process = run(LIMITS, tmp_path)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert all(".tmp" not in line and ".lock" not in line for line in out.splitlines())
    assert {line.split()[2] for line in out.splitlines() if line.startswith("0 ")} == {"OutputError"}
    assert {line.split()[2] for line in out.splitlines() if line.startswith("20000 ")} == {"OutputError"}
    assert {line.split()[2] for line in out.splitlines() if line.startswith("5000000 ")} == {"written"}


SIGNALLED = """
import sys
import numpy as np, anndata as ad
import scdecode as sd
from scdecode.results import write_h5ad

folder = sys.argv[1]
cells = [ad.AnnData(np.full((400, 200), value, dtype=np.float32)) for value in (1, 2)]
model = sd.load(f"{folder}/model")
z = np.resize(model.reference_latents(), (400, 4))
print("ready", flush=True)
while True:
    for one in cells:
        write_h5ad(one, f"{folder}/x.h5ad", overwrite=True, compression="gzip")
        model.decode(z, batch="batch_1", chunk_size=50, out=f"{folder}/y.h5ad", overwrite=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_at_any_moment(tmp_path, kind):
    MODEL.save(tmp_path / "model")
    delays = np.random.default_rng(int(kind)).uniform(0.1, 0.5, 1)
    for delay in delays:
        process = run(SIGNALLED, tmp_path)
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(kind)
        _, err = process.communicate()
        assert process.returncode == -kind if kind != signal.SIGINT else process.returncode in (-2, 1, 130)
        assert "SystemError" not in err
        assert "Segmentation" not in err
        if kind == signal.SIGINT:
            assert "KeyboardInterrupt" in err
        for name in ("x.h5ad", "y.h5ad"):
            if (tmp_path / name).exists():
                values = ad.io.read_h5ad(tmp_path / name).X
                assert values.shape[0] == 400
                assert name == "y.h5ad" or len(np.unique(values)) == 1
    write_h5ad(make_adata(5, 6), tmp_path / "x.h5ad", overwrite=True)
    write_h5ad(make_adata(5, 6), tmp_path / "y.h5ad", overwrite=True)
    assert left(tmp_path) == ["model", "x.h5ad", "y.h5ad"]
