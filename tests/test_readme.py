"""The README's Python and every command of its console blocks are run, in its order, in an empty folder."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks("python"))
    exec(compile(code, "README.md", "exec"), {})
    assert "supported" in capsys.readouterr().out
    for name in ("model/model.json", "trends.png", "cascade.png"):
        assert (tmp_path / name).is_file(), name


def test_the_commands_run(tmp_path: Path) -> None:
    commands = [
        shlex.split(line[2:], comments=True)
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("$ ") and not line.startswith("$ make")
    ]
    assert len(commands) >= 7
    for words in commands:
        if words[-1] == "demo":
            continue  # tests/test_demo.py runs it, with fewer epochs
        program = {"scdecode": [sys.executable, "-m", "scdecode"], "python": [sys.executable]}[words[0]]
        done = subprocess.run([*program, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    files = ("model", "latent.npy", "expression.h5ad", "path.h5ad", "path.png", "generated.h5ad", "scvi_model/model.pt")
    for name in (*files, "trends.csv", "genes.csv", "cascade.png", "again/reference.safetensors"):
        assert (tmp_path / name).exists(), name
