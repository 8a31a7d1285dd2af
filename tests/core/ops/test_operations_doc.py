"""docs/operations.md is what the catalogue says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from runtime.ops import CATALOGUE

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_operations_doc", ROOT / "tools/generate_operations_doc.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_operations_document_is_current(tool: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["generate_operations_doc.py", "--check"])
    assert tool.main() == 0, "run: python tools/generate_operations_doc.py"


def test_a_stale_document_fails_the_check_and_writing_it_makes_it_current(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tool, "TARGET", tmp_path / "docs" / "operations.md")
    monkeypatch.setattr(sys, "argv", ["generate_operations_doc.py", "--check"])
    assert tool.main() == 1
    assert "run: python tools/generate_operations_doc.py" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["generate_operations_doc.py"])
    assert tool.main() == 0
    monkeypatch.setattr(sys, "argv", ["generate_operations_doc.py", "--check"])
    assert tool.main() == 0


def test_every_operation_is_listed_in_the_contents_and_has_a_section(tool: ModuleType):
    text = tool.document()
    for op in CATALOGUE:
        assert f"[{op.name}](#{op.name}{op.version})" in text
        assert f"\n### {op.key}\n" in text
    assert "- Expands to: rms_norm, linear (" in text
