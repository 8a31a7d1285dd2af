"""L3: groups of ranks and caches that move, in this process; once over worker processes."""

from __future__ import annotations

import pytest

from runtime.backend import DeviceConfig, DeviceInfo
from runtime_conformance.inprocess import scale_faults, serve_fault, speed_fault
from runtime_conformance.levels import is_required
from runtime_conformance.runner import Options
from runtime_conformance.saboteurs.backend import make_backend
from runtime_conformance.saboteurs.faults_scale import SCALE
from runtime_conformance.saboteurs.faults_speed import SPEED
from runtime_conformance.scale import run_scale
from runtime_conformance.target import Target
from runtime_conformance.verdict import Verdict

FOUND = {
    "group-misses-rank": "all_reduce[f32, 2 ranks, normal]: ",
    "group-late": "many_in_a_row: ",
    "group-lenient": "other_shapes_are_refused: shapes differ: the collective succeeded",
    "group-staged": "tensor_parallel_2_equals_1: ",
    "export-own-layout": "a cache goes from bench to host: ",
}


def opened(backend):
    return backend.runtime_open(backend.probe()[0], DeviceConfig())


def saboteur(name: str):
    return next(s for s in (*SCALE, *SPEED) if s.name == name).make()


def test_an_honest_backend_scales():
    assert scale_faults(lambda: opened(make_backend()), 7) is None


@pytest.mark.parametrize("name", FOUND)
def test_faults_of_a_group_are_found(name: str):
    found = scale_faults(lambda: opened(saboteur(name)), 7)
    assert found is not None
    assert found.startswith(FOUND[name])


@pytest.mark.slow
def test_slots_of_rejected_drafts_are_written_again():
    found = serve_fault(opened(saboteur("slots-written-once")), 7)
    assert found is not None
    assert found.startswith("rejected_drafts_leave_no_trace: logits are off by ")


def test_a_cache_that_moves_needs_a_decoder_on_the_device():
    from runtime_conformance.device.handover import give
    from runtime_conformance.device.laws import NotEvaluable

    class WithoutAttention(type(make_backend())):
        attention = None

    with pytest.raises(NotEvaluable, match="the cache of a decoder is not on the device"):
        give(opened(WithoutAttention()), "bench", 7, 16)


@pytest.mark.slow
def test_results_that_are_replayed_or_made_ahead_of_the_clock_are_refused():
    assert speed_fault(opened(make_backend()), 7) is None
    assert "max |z|" in str(speed_fault(opened(saboteur("speed-replayed")), 7))
    assert "times the speed of its copies" in str(speed_fault(opened(saboteur("speed-foreseen")), 7))


def test_collectives_are_required_of_the_communicator_and_not_of_the_manifest():
    from runtime_conformance.device.collective import collective_case

    assert not is_required(collective_case("all_reduce", 2, "f32", "normal"), "L3", ())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_worker_processes_form_groups_and_survive_a_dead_one():
    device = DeviceInfo(0, "numpy", 1 << 30, 0.0)
    target = Target("bench", "runtime_conformance.saboteurs.backend:honest_f32", device)
    rows = {r.case_id: r for r in run_scale(target, make_backend().manifest(), Options(level="L3"))}
    assert {r.verdict for r in rows.values()} == {Verdict.PASS}
    assert "scale/a_dead_peer_is_noticed" in rows
    assert "scale/cache_comes_from_the_reference" in rows
    assert len(rows) == 26
