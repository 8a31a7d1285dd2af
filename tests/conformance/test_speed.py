"""Performance: what is believed, and what has drifted between two results."""

from __future__ import annotations

from runtime_conformance.perf import implausible, perf_cases
from runtime_conformance.report.diff import drifts
from runtime_conformance.saboteurs.backend import make_backend

ROOF = {"operations_per_s": 100e9, "cached_bytes_per_s": 50e9, "copied_bytes_per_s": 10e9}


def entry(phase: str, median_s: float, spread: float = 0.02) -> dict:
    return {"id": "linear@1/1", "phase": phase, "title": "q_proj", "median_s": median_s, "spread": spread}


def test_more_than_the_roofline_is_not_believed():
    assert implausible(49e9, 99e9, ROOF) == ""
    assert implausible(1e9, 160e9, ROOF) == "1.6 times the arithmetic that this device showed itself"
    assert implausible(80e9, 1e9, ROOF) == "1.6 times the roofline that this device showed itself"
    assert implausible(1e9, 1e9, {"operations_per_s": 0.0}) == ""


def test_a_roofline_far_above_plain_copies_is_not_believed():
    roof = ROOF | {"cached_bytes_per_s": 900e9}
    assert implausible(90e9, 1e9, roof) == "9.0 times the speed of its copies"


def test_drifts_of_prefill_and_decode_are_told_apart():
    before = {"performance": [entry("decode", 100e-6), entry("prefill", 1e-3)]}
    after = {"performance": [entry("decode", 130e-6), entry("prefill", 0.5e-3)]}
    assert list(drifts(before, after)) == [
        "SLOWER linear@1/1 (decode, q_proj): 100 us -> 130 us, 1.30 times",
        "FASTER linear@1/1 (prefill, q_proj): 1000 us -> 500 us, 0.50 times",
    ]


def test_a_drift_within_the_spread_is_none():
    before = {"performance": [entry("decode", 100e-6, 0.3)]}
    assert list(drifts(before, {"performance": [entry("decode", 125e-6, 0.2)]})) == []


def test_shapes_of_real_models_are_measured_in_both_phases():
    cases = list(perf_cases(make_backend().manifest(), ("linear",)))
    assert {phase for phase, _ in cases} == {"decode", "prefill"}
    assert {c.inputs["x"].shape[0] for p, c in cases if p == "decode"} == {1}
    assert all(c.note for _, c in cases)
