"""docs/models.md lists every architecture with its names."""

from __future__ import annotations

from pathlib import Path

from runtime.models import ARCHITECTURES

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "models.md"


def test_table_of_models_has_every_row_with_its_names() -> None:
    cells = [
        [c.strip() for c in line.split("|")[1:4]] for line in DOCUMENT.read_text().splitlines() if line[:2] == "| "
    ]
    listed = {name: (gguf, hf) for name, gguf, hf in cells[1:]}
    assert set(listed) == set(ARCHITECTURES)
    for name, row in ARCHITECTURES.items():
        gguf, hf = listed[name]
        assert gguf == (", ".join(row.gguf) or "(as llama)")
        assert hf == ", ".join(row.hf)
