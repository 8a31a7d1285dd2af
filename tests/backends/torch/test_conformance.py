"""The suite through Triton's interpreter: the code that is compiled for a chip, in float32 and with rounded operands."""

from __future__ import annotations

from datetime import date

import pytest

from runtime_conformance.levels import profile
from runtime_conformance.report.text import text
from runtime_conformance.runner import Options, Report, run_suite
from runtime_conformance.target import Target

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.timeout(600)]


def run(plugin: str, ops: tuple[str, ...] = ("*",), *more: str) -> Report:
    import runtime_torch_cpu

    target = Target("torch-cpu", f"runtime_torch_cpu:{plugin}", runtime_torch_cpu.INFO, "runtime-torch-cpu", "0")
    profiles = tuple(profile(name) for name in ("Q-GGUF-core", "MoE", "sampling", "deterministic", *more))
    options = Options(level="L2", profiles=profiles, budget="smoke", ops=ops, timeout_s=400, today=date(2026, 1, 1))
    return run_suite(target, options)


def test_the_smoke_budget_of_l2_passes_in_float32(workers_find_it: None):
    report = run("plugin")
    assert report.exit_code == 0, "\n".join(text(report, "out"))


def test_products_in_halves_are_as_exact_as_declared(workers_find_it: None):
    report = run("rounded", ("linear", "attention", "moe_linear", "embed", "qkv_rope_write", "swiglu_ffn", "serve"))
    assert report.exit_code == 0, "\n".join(text(report, "out"))


def test_captured_steps_equal_eager_ones(workers_find_it: None):
    report = run("captured", ("attention", "qkv_rope_write", "serve"), "capture")
    assert report.exit_code == 0, "\n".join(text(report, "out"))
    assert "law captured_equals_eager" in "".join(row.title for row in report.rows if row.verdict == "PASS")
