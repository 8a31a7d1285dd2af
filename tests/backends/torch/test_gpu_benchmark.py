"""The benchmark runs to its end on a device that stands in for a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_dry_run_measures_every_kind_of_step_with_both_engines(
    workers_find_it: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    from gpu import MODELS, main

    arguments = ["--dry-run", "--backend", "torch-cpu", "--device", "cpu", "--models", "llama-tiny,qwen3-moe-tiny"]
    assert main([*arguments, "--weights", "q8_0,fp8", "--work", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("dry run: the figures say nothing about any device\n")
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["skipped"] == {}
    rows = report["rows"]
    assert {r["weights"] for r in rows if r["engine"] == "runtime"} == {"q8_0", "fp8"}
    assert (tmp_path / "gpu.md").read_text().count("| llama-tiny |") == sum(r["model"] == "llama-tiny" for r in rows)
    assert not list(tmp_path.glob("*.gguf"))
    kinds = {(r["engine"], r["model"], r["kind"], r["batch"]) for r in rows}
    for engine in ("runtime", "transformers"):
        for model in ("llama-tiny", "qwen3-moe-tiny"):
            assert {(engine, model, "prefill", 1), (engine, model, "decode", 1), (engine, model, "decode", 2)} <= kinds
    assert all(r["tokens_per_s"] > 0 for r in rows)
    assert MODELS["llama-3.1-8b"].num_layers == 32
    sys.modules.pop("gpu", None)
