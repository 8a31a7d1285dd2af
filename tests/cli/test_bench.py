"""`runtime bench`: the table, the file of records, and what is refused before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.engine import ceilings

pytestmark = pytest.mark.usefixtures("plugins", "small_ceilings")
SMALL = ("--backend", "tiny", "--prefill", "8", "--decode", "2", "--depth", "0,5", "--batch", "1,2", "--repeat", "2")


@pytest.fixture
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "_MATRIX", 64)


def test_a_row_for_every_measurement_and_the_ceilings_below(command: Callable, tiny: Path) -> None:
    result = command("bench", "-m", tiny, *SMALL)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert [line.split()[:4] for line in lines[:6]] == [
        ["kind", "tokens", "depth", "batch"],
        ["prefill", "8", "0", "1"],
        ["decode", "2", "0", "1"],
        ["decode", "2", "0", "2"],
        ["decode", "2", "5", "1"],
        ["decode", "2", "5", "2"],
    ]
    assert lines[6].startswith("ceiling, 1 thread: ")
    assert max(map(len, lines)) <= 120
    assert "backend tiny" in result.err


def test_the_file_holds_every_repetition_and_the_facts(command: Callable, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    assert command("bench", "-m", tiny, *SMALL, "-q", "--json", file).err == ""
    document = json.loads(file.read_text())
    assert document["schema"] == "runtime-bench/1"
    assert document["machine"]["num_cores"] >= 1
    assert document["machine"]["processor"]
    assert document["loaded"]["model"] == "tiny.gguf"
    assert document["loaded"]["kv_bytes"] > 0
    record = document["records"][-1]
    assert {k: record[k] for k in ("kind", "num_tokens", "depth", "batch")} == {
        "kind": "decode",
        "num_tokens": 2,
        "depth": 5,
        "batch": 2,
    }
    assert len(record["tokens_per_s"]) == 2
    highest = max(document["ceilings"][when]["read_bytes_per_s"] for when in ("before", "after"))
    assert record["share_of_read"] == pytest.approx(record["weight_bytes_per_s"] / highest)


def test_records_can_go_to_standard_output(command: Callable, tiny: Path) -> None:
    result = command("bench", "-m", tiny, "--backend", "tiny", "--prefill", "4", "--decode", "0", "-q", "--json", "-")
    assert [r["kind"] for r in json.loads(result.out)["records"]] == ["prefill"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prefill", "many"), "'many' is not a list of numbers such as 1,8,32"),
        (("--prefill", "0", "--decode", "0"), "there is nothing to measure"),
        (("--batch", "0"), "batch = 0: it must be at least 1"),
        (("--depth", "4000"), "a context of 4064 tokens was asked for, the model was made for 128"),
        (("--json", "/nowhere/bench.json"), "--json /nowhere/bench.json: No such file or directory"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    command: Callable, tiny: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = command("bench", "-m", tiny, "--backend", "tiny", *arguments)
    assert result.code == 2
    assert message in result.err
