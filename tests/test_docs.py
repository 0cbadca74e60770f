"""The Python on the pages of docs/ runs, page by page; so do the commands of the page about trajectories."""

from __future__ import annotations

import os
import re
import shlex
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

from scdecode import SCVI
from scdecode.cli import main
from scdecode.errors import ScdecodeWarning

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
TRAJECTORIES = PAGES[0].parent / "trajectories.md"
WORM = Path(os.environ.get("SCDECODE_DATA") or Path(__file__).parents[2] / "shared" / "data") / (
    "worm_embryo_packer2019.h5ad"
)


def blocks(page: Path, language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL))


def run(page: Path) -> dict[str, object]:
    """The page's own asserts are the test."""
    mpl.use("Agg")
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScdecodeWarning)
        exec(compile(blocks(page, "python"), str(page), "exec"), names)
    plt.close("all")
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(run(page)["model"], SCVI)
    if page == TRAJECTORIES:
        run_commands(page, monkeypatch)
        made = ("path.h5ad", "trends.png", "latent.png", "lineages.csv", "lineages.png", "awa.h5ad", "genes.csv")
        for name in (*made, "cascade.png", "change.png", "batches.h5ad", "difference.csv"):
            assert Path(name).is_file(), name


def run_commands(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of the page's console, in this process."""
    lines = [line[2:] for line in blocks(page, "console").splitlines() if line.startswith("$ ")]
    assert len(lines) >= 4
    for line in lines:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        status: int | str | None = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScdecodeWarning)
            try:
                main()
            except SystemExit as end:
                status = end.code
        assert not status, line
    plt.close("all")


@pytest.mark.realdata
@pytest.mark.skipif(not WORM.is_file(), reason=f"no real cells at {WORM}; SCDECODE_DATA may name another folder")
def test_trajectories_of_real_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same page, on the worm embryo, which it reads where the file is in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path(WORM.name).symlink_to(WORM.resolve())
    names = run(TRAJECTORIES)
    assert "Neuroblast_ASG_AWA" in set(names["adata"].obs["cell_type"])  # type: ignore[attr-defined]
    assert names["adata"].n_obs == 1805  # type: ignore[attr-defined]
