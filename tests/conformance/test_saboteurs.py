"""The suite tests itself: a few saboteurs always, all of them and 500 honest runs in `make test-all`."""

from __future__ import annotations

import pytest

from runtime.backend import ReferenceDevice
from runtime_conformance.cases import make_cases
from runtime_conformance.inprocess import Bench
from runtime_conformance.selftest import SABOTEURS, catch, honest_run, run_selftest

QUICK = ("rope-pairs", "gqa-mapping", "slot-border", "topk-indices", "uninitialised", "kv-transposed", "bad-contents")


def test_there_are_at_least_sixty_saboteurs_with_distinct_names():
    names = [s.name for s in SABOTEURS]
    assert len(set(names)) == len(names) >= 60


def test_some_saboteurs_are_caught():
    bench, cases = Bench(7), {}
    for name in QUICK:
        saboteur = next(s for s in SABOTEURS if s.name == name)
        assert catch(saboteur, bench, cases) is not None, name


def test_honest_backends_raise_no_alarm():
    assert [a for seed in (101, 104, 107, 110) for a in honest_run(seed)] == []


def test_the_reference_device_passes_every_law_of_attention():
    device = ReferenceDevice(name="cpu")
    bench = Bench(7)
    laws = set()
    for case in make_cases(device.manifest, budget="smoke", ops=("attention", "kv_write", "kv_copy_blocks")):
        if case.law:
            laws.add(case.law)
            assert bench.faults(device, case, computes_on_host=True) == []
    assert laws >= {
        "physical_blocks_may_be_permuted",
        "free_slots_leave_no_trace",
        "sequences_are_independent",
        "chunked_equals_one_shot",
        "shared_prefix_equals_copied",
        "unused_table_entries_leave_no_trace",
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_saboteurs_are_caught_and_500_honest_runs_raise_no_alarm():
    result = run_selftest(honest_runs=500)
    assert result.alarms == []
    assert result.share >= 0.97, result.missed
