"""How the command line ends: one line on standard error and the right status, for all files, streams and signals."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from cli_runs import make_place, run

import scdecode as sd
from scdecode.cli import app

SCDECODE = [sys.executable, "-m", "scdecode"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("cli_ends"))


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    scdecode = " ".join(map(shlex.quote, SCDECODE))
    return subprocess.run(
        ["bash", "-c", command.replace("scdecode ", f"{scdecode} ")],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


# -- files -------------------------------------------------------------------------------------------------------------


def make_mudata(path: Path, _: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0"})
        file.create_group("mod/rna")


def make_newer(path: Path, cells: Path) -> None:
    shutil.copy(cells, path)
    with h5py.File(path, "a") as file:
        file["layers/counts"].attrs["encoding-version"] = "9.9.9"


def make_newer_obs(path: Path, cells: Path) -> None:
    shutil.copy(cells, path)
    with h5py.File(path, "a") as file:
        file["obs"].attrs["encoding-type"] = "superframe"


FILES = {
    "mu.h5mu": (make_mudata, "mdata['rna'].write_h5ad"),
    "mu.h5ad": (make_mudata, "mdata['rna'].write_h5ad"),
    "newer.h5ad": (make_newer, "pip install -U anndata"),
    "newer_obs.h5ad": (make_newer_obs, "pip install -U anndata"),
    "empty.h5ad": (lambda path, _: path.touch(), "cannot be read as an AnnData"),
    "folder.h5ad": (lambda path, _: path.mkdir(), "cannot be read as an AnnData"),
    "folder.zarr": (lambda path, _: path.mkdir(), "cannot be read as an AnnData"),
    "missing.h5ad": (lambda path, _: None, "there is no such file"),
    "caf\udce9.h5ad": (lambda path, _: None, "there is no such file"),
    "x" * 5000 + ".h5ad": (lambda path, _: None, "error: "),
}


@pytest.mark.parametrize("name", FILES, ids=lambda name: name[:20].encode("ascii", "backslashreplace").decode())
@pytest.mark.parametrize("command", ["train", "encode", "path", "decode", "convert"])
def test_cells_that_cannot_be_read(place, tmp_path, monkeypatch, capsys, name, command):
    monkeypatch.chdir(tmp_path)
    make, words = FILES[name]
    make(Path(name), place / "cells.h5ad")
    before = sorted(tmp_path.rglob("*"))
    arguments = {
        "train": (name, "--out", "new"),
        "encode": (place / "model", name, "--out", "z.npy"),
        "path": (place / "model", name, "--pseudotime", "pseudotime", "--out", "p.csv"),
        "decode": (place / "model", name, "--out", "e.csv"),
        "convert": (place / "model", "new", "--reference", name),
    }[command]
    assert run(command, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 510
    if not (command == "decode" and name.endswith(".h5mu")):  # it is no file of points either
        assert words in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["info", "decode", "train"])
def test_a_nul_in_a_name(place, capsys, command):
    assert run(command, "a\0b") == 2
    error = capsys.readouterr().err
    assert "NUL" in error and error.count("\n") == 1


def test_no_genes_are_not_all_genes(place, tmp_path, capsys):
    for genes in ("", ",", " , "):
        words = ("--genes", genes, "--out", tmp_path / "e.csv")
        assert run("decode", place / "model", place / "points.npy", *words) == 1
        assert "--genes: got" in capsys.readouterr().err.splitlines()[-1]


def test_more_cells_than_memory_holds(place, tmp_path, capsys):
    for n in ("1000000000000", "1" + 30 * "0"):
        assert run("generate", place / "model", "--n", n, "--out", tmp_path / "g.h5ad") == 1
        assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("decode", "m", "p.npy"), "--out"),
        (("train", "c.h5ad", "--out", "m", "--n-latent", "ten"), "--n-latent"),
        (("encode", "m", "c.h5ad", "--out", "z.npy", "--n-sample", "3"), "--n-samples"),
        (("trian",), "trian"),
        (("info",), "MODEL"),
        (("generate", "m", "--out", "g.csv"), "--n"),
    ],
)
def test_wrong_usage_is_one_line_and_status_two(capsys, words, message):
    assert run(*words) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and error.startswith("error: ")
    assert message in error and "--help" in error


def test_without_a_command_there_is_help(capsys):
    assert run() == 2
    out, error = capsys.readouterr()
    assert "Usage: scdecode" in out and error == ""


# -- streams and signals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["--help", "info model"])
def test_a_full_output(place, words):
    done = shell(f"scdecode {words} > /dev/full", place)
    assert done.returncode == 1
    assert done.stderr == "error: standard output: No space left on device\n"


@pytest.mark.parametrize("words", ["--help", "info model --json"])
def test_a_closed_pipe(place, words):
    done = shell(f"scdecode {words} | true; echo ${{PIPESTATUS[0]}}", place)
    assert done.stdout in ("0\n", "141\n") and done.stderr == ""


def test_a_closed_output_and_a_full_error_stream(place):
    assert shell("scdecode info model >&-", place).returncode == 0
    assert shell("scdecode info nowhere 2> /dev/full", place).returncode == 1


def test_an_encoding_without_the_characters(tmp_path, monkeypatch):
    adata = sd.datasets.simulate_branching(60, 10, n_batches=3)
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories(["Zürich", "東京", "α"])
    sd.SCVI.setup_anndata(adata, batch_key="batch")
    model = sd.SCVI(adata, n_hidden=4)
    model.train(1, progress=False)
    model.save(tmp_path / "model")
    ascii_only = {"PYTHONIOENCODING": "ascii", "COLUMNS": "120"}
    for command in ("info model", "path --help"):
        done = shell(f"scdecode {command}", tmp_path, **ascii_only)
        assert done.returncode == 0 and done.stderr == "" and done.stdout.isascii()


@pytest.mark.parametrize("wait", [0.7, 3.0])
def test_ctrl_c_is_one_line_and_status_130(tmp_path, wait):
    words = ["generate", "model", "--n", "10", "--out", "g.h5ad"] if wait < 1 else ["demo", "--out", "demo"]
    place = Path(tmp_path)
    process = subprocess.Popen(
        [*SCDECODE, *words],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    # the handler is there once the imports of torch have begun
    while time.monotonic() < deadline and not _imports_torch(process.pid):
        time.sleep(0.05)
    if wait >= 1:
        time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    lines = [line for line in error.splitlines() if not line.startswith(("training: ", "scdecode: compiling"))]
    assert lines[-1] == "interrupted" and "Traceback" not in error
    assert not [path for path in place.iterdir() if not path.name.endswith(".lock")]


def _imports_torch(pid: int) -> bool:
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


# -- help --------------------------------------------------------------------------------------------------------------


def examples() -> list[str]:
    epilogs = [command.epilog or "" for command in app.registered_commands]
    return [line for epilog in epilogs for line in re.findall(r"Example: (.*)", epilog)]


def test_the_examples_of_the_help_run(place, tmp_path, monkeypatch, capsys):
    cells = ad.read_h5ad(place / "cells.h5ad")
    cells.obs["donor"] = cells.obs["batch"].cat.rename_categories({"batch_1": "donor_1"})
    types = {"trunk": "HSC", "branch_1": "Erythroid", "branch_2": "B cell"}
    cells.obs["cell_type"] = cells.obs["branch"].astype(str).map(types).astype("category")
    cells.obs["dpt_pseudotime"] = cells.obs["pseudotime"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line)[1:] for line in examples()]
    assert {words[0] for words in commands} == {
        "train",
        "info",
        "convert",
        "path",
        "encode",
        "decode",
        "generate",
        "demo",
    } | ({words[0] for words in commands} & {"export"})
    for words in sorted(commands, key=lambda words: words[0] != "train"):
        if words[0] in ("demo", "export"):
            continue  # tests of their own run them
        short = ["--max-epochs", "2", "--set", "n_epochs_kl_warmup=1"] if words[0] == "train" else []
        assert run(*words, *short) == 0, shlex.join(words)


@pytest.mark.parametrize("command", ["", "train", "info", "convert", "path", "encode", "decode", "generate", "demo"])
def test_help_in_forty_columns_names_every_option_in_full(monkeypatch, capsys, command):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "dumb")
    assert run(*filter(None, [command]), "--help") == 0
    text = capsys.readouterr().out
    assert "…" not in text and "\x1b" not in text
    if command == "path":
        for option in ("--categorical", "--max-conditions", "--genes-table", "--pseudotime", "--no-spread"):
            assert f"{option}" in text
    assert max(len(line) for line in text.splitlines()) <= 50  # the longest option, and ten columns for its text


def test_second_runs_say_how_to_overwrite(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, cells = place / "model", place / "cells.h5ad"
    path = ("path", model, cells, "--pseudotime", "pseudotime", "--n-points", 5)
    for words in (
        ("encode", model, cells, "--out", "z.npy"),
        ("decode", model, place / "points.npy", "--out", "e.h5ad"),
        ("generate", model, "--n", 5, "--out", "g.csv"),
        ("convert", model, "theirs", "--to", "scvi-tools"),
        (*path, "--out", "p.csv", "--genes-table", "genes.csv"),
    ):
        assert run(*words) == 0
        capsys.readouterr()
        assert run(*words) == 1
        error = capsys.readouterr().err
        assert error.endswith("it is there already; choose another name, or pass --overwrite\n")
        assert run(*words, "--overwrite") == 0


def test_points_from_pandas(place, tmp_path):
    np.savetxt(tmp_path / "z.csv", np.load(place / "points.npy"), delimiter=",")
    assert run("decode", place / "model", tmp_path / "z.csv", "--out", tmp_path / "e.csv") == 1
