"""The benchmark runs to its end on a device that stands in for a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
DEVICE = ["--dry-run", "--backend", "torch-cpu", "--device", "cpu"]

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def benchmark(workers_find_it: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    yield gpu
    sys.modules.pop("gpu", None)


def test_a_dry_run_measures_every_kind_of_step_with_both_engines(
    benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--models", "llama-tiny,qwen3-moe-tiny", "--weights", "q8_0,fp8", "--profile", "--jobs", "1"]
    assert benchmark.main([*DEVICE, *arguments, "--work", str(tmp_path)]) == 0
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
    assert {(p["model"], p["weights"], p["batch"]) for p in report["profiles"]} >= {("llama-tiny", "fp8", 1)}
    assert all(sum(k["share"] for k in p["kernels"]) == pytest.approx(1.0) for p in report["profiles"])


def test_products_of_one_shape_are_measured_in_every_format(benchmark, tmp_path: Path):
    arguments = ["--products", "--models", "llama-tiny", "--weights", "bf16,q4_k,fp8", "--no-peer"]
    assert benchmark.main([*DEVICE, *arguments, "--work", str(tmp_path)]) == 0
    products = json.loads((tmp_path / "gpu.json").read_text())["products"]
    made = {(p["weights"], p["num_rows"], p["n"], p["k"]) for p in products}
    shapes = ((256, 256), (512, 256), (256, 512), (128, 256))
    assert made == {(w, t, *s) for w in ("bf16", "q4_k", "f8_e4m3_g128") for t in (1, 8) for s in shapes}


def test_kernels_are_built_by_processes_of_their_own_before_anything_is_measured(
    benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--models", "llama-tiny", "--weights", "q8_0", "--no-peer", "--jobs", "2"]
    assert benchmark.main([*DEVICE, *arguments, "--work", str(tmp_path)]) == 0
    assert "by 3 processes, 0 failed" in capsys.readouterr().err


def test_what_matters_most_is_measured_first(benchmark):
    jobs = benchmark.make_jobs(["llama-3.1-8b"], benchmark.WEIGHTS.split(","), is_tiny=False, has_peer=True)
    assert [j.name.split()[1] for j in jobs[:5]] == ["bf16", "q4_k", "transformers", "q8_0", "fp8"]
    assert jobs[0].sizes.steps == (("decode", 1), ("prefill", 4096), ("decode", 64), ("prefill", 512))
    assert [j.sizes.steps[-1] for j in jobs if j.is_peer] == [("prefill", 512), ("decode", 4)]
