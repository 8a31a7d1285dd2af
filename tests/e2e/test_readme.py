"""The README's promises: its Python blocks and those of docs/python.md run, its verbs exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
MORE_BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(encoding="utf-8"), re.S)


def test_the_readme_fits_on_one_screen_and_shows_code() -> None:
    assert TEXT.count("\n") <= 80
    assert PYTHON_BLOCKS


@pytest.mark.parametrize("code", PYTHON_BLOCKS + MORE_BLOCKS)
def test_python_in_the_documents_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "a document", "exec"), {})
    expected = re.findall(r"print\(.*?\)  # (.*)", code)
    assert capsys.readouterr().out.splitlines() == expected


def test_every_make_verb_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for verb in re.findall(r"^    make ([a-z-]+)", TEXT, re.M):
        assert re.search(rf"^{verb}:", makefile, re.M), verb


def test_every_runtime_verb_of_the_readme_exists() -> None:
    from runtime.cli import VERBS

    named = set(re.findall(r"^    runtime ([a-z]+)", TEXT, re.M))
    assert named
    assert named <= set(VERBS)
