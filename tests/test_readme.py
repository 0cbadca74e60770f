"""The README's Python and every command of its console blocks are run, in its order, in an empty folder."""

from __future__ import annotations

import itertools
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
    exec(compile(code.replace("max_epochs=60", "max_epochs=3"), "README.md", "exec"), {})
    assert "supported" in capsys.readouterr().out
    assert (tmp_path / "model" / "model.json").is_file()


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
        arguments = ["3" if before == "--max-epochs" else word for before, word in itertools.pairwise(words)]
        done = subprocess.run([*program, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    files = ("model", "latent.npy", "expression.h5ad", "path.h5ad", "path.png", "generated.h5ad", "scvi_model/model.pt")
    for name in (*files, "again/reference.safetensors"):
        assert (tmp_path / name).exists(), name
