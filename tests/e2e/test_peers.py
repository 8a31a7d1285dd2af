"""`benchmarks/peers.py` and `benchmarks/quality.py` as processes, on a tiny model with random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; docs/benchmarks.md says how to")

pytestmark = pytest.mark.slow


def script(name: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *map(str, arguments)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(120)
def test_engines_take_turns_on_the_same_file_and_agree(tmp_path: Path) -> None:
    file = tmp_path / "peers.json"
    out = script(
        *("peers.py", "--shape", "llama-tiny", "--format", "q4_0", "--folder", tmp_path, "--json", file, "--quick"),
        *("--repeat", 2, "--threads", 1, "--only", "prefill,decode,disturbed,batch,start"),
    )
    assert "llama-tiny-q4_0.gguf" in out
    document = json.loads(file.read_text())
    (model,) = document["models"]
    assert model["agreement"]["correlation"] > 0.99
    names = [
        "prefill 128",
        "decode, empty context",
        "decode, a core taken",
        "8 sequences decoding",
        "start to first token",
    ]
    assert [c["name"] for c in model["comparisons"]] == names
    for comparison in model["comparisons"]:
        ours, theirs = (comparison["values"][engine] for engine in ("runtime", "llama_cpp"))
        assert len(ours) == len(theirs) == 2
        first, second = (theirs, ours) if comparison["unit"] == "s" else (ours, theirs)
        assert comparison["ratios"] == pytest.approx([a / b for a, b in zip(first, second)])


def test_our_answers_are_no_further_from_the_references_than_those_of_llama_cpp(tmp_path: Path) -> None:
    file = tmp_path / "quality.json"
    script("quality.py", "--shape", "llama-tiny", "--format", "q8_0", "--peer", "--json", file)
    ours, theirs = json.loads(file.read_text())
    assert ours["engine"] == "runtime"
    assert ours["mean_kl"] <= theirs["mean_kl"]
    assert 1e-5 < theirs["mean_kl"] < 1e-2
