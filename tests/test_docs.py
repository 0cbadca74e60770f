"""The Python on the pages of docs/ runs, page by page."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from scdecode import SCVI
from scdecode.errors import ScdecodeWarning

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))


def code_of(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))


@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page)], ids=lambda page: page.stem)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScdecodeWarning)
        names: dict[str, object] = {}
        exec(compile(code_of(page), str(page), "exec"), names)  # the page's own asserts are the test
    assert isinstance(names["model"], SCVI)
