"""Padded, captured and replayed steps: all of a chip's code but the graph itself, for which a stand-in records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runtime.backend import DeviceConfig, ExecutionFailed
from runtime_conformance.cases import make_cases
from runtime_conformance.data import make_data, make_decoy
from runtime_conformance.device.run import POISONS, Session
from runtime_conformance.device.serving import Engine

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(300)]


@pytest.fixture
def captured() -> Iterator:
    import runtime_torch_cpu

    opened = runtime_torch_cpu.captured.runtime_open(runtime_torch_cpu.INFO, DeviceConfig())
    yield opened
    opened.close()


@pytest.fixture
def executables(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that is compiled from here on."""
    import runtime_torch.device
    from runtime_torch.executable import RegionExecutable

    made: list[Any] = []

    def remember(*arguments: Any) -> RegionExecutable:
        made.append(RegionExecutable(*arguments))
        return made[-1]

    monkeypatch.setattr(runtime_torch.device, "RegionExecutable", remember)
    return made


def test_capture_runs_nothing_and_replay_reads_what_lies_in_the_same_memory(device: Any):
    import torch
    from runtime_torch_graph import capture

    from runtime_torch.kernels import elementwise

    x, y, z = torch.tensor([1.0, -2.0]), torch.zeros(2), torch.zeros(2)

    def work() -> None:
        elementwise.activation[(1,)](x, y, 2, KIND=0, BLOCK=2)
        torch.mul(y.double().float(), 2.0, out=z)
        z[:1].add_(1.0)

    graph = capture(work)
    assert y.tolist() == z.tolist() == [0.0, 0.0]
    x.copy_(torch.tensor([3.0, 0.0]))
    graph.replay()
    graph.replay()
    assert y.tolist() == [pytest.approx(2.8577223), 0.0]
    assert z.tolist() == [pytest.approx(6.7154446), 0.0]


def test_waiting_for_the_device_is_refused_while_a_step_is_captured(device: Any):
    import torch
    from runtime_torch_graph import capture

    x = torch.ones(1)
    with pytest.raises(ExecutionFailed, match="_local_scalar_dense waits for the device"):
        capture(lambda: x.item())


def test_one_captured_step_serves_all_batches_of_its_bucket(captured: Any, device: Any, executables: list[Any]):
    """1 to 3 sequences, with 1 to 4 tokens each and blocks that grow, before a device that neither pads nor captures."""
    engines = [Engine(opened, "bench", 7, 16) for opened in (captured, device)]
    (captured_step, _) = executables
    served = [[e.fresh(range(3 + i, 40 + i), i) for i in range(3)] for e in engines]
    batches = [((0, 5), (1, 3)), ((0, 2), (1, 4), (2, 2)), ((2, 5), (0, 1)), ((1, 8),), ((0, 1), (1, 1), (2, 4))]
    batches += [((0, 1), (1, 1), (2, 1)), ((2, 1), (1, 1), (0, 1)), ((0, 6),), ((1, 5),)]
    for batch in batches:
        answers = [e.step(*((sequences[i], n) for i, n in batch)) for e, sequences in zip(engines, served)]
        np.testing.assert_allclose(*answers, rtol=2e-4, atol=2e-5)
    # buckets (tokens, sequences): (8, 2) twice, (8, 4) twice, (8, 1) three times, (4, 4) twice; each runs eagerly once
    assert captured_step.num_replays == 5
    for engine in engines:
        engine.executor.close()


def test_a_replayed_step_has_the_bits_of_an_eager_one_and_leaves_what_lies_beyond_it(captured: Any):
    """Attention over 5 rows of 3 sequences, padded to 8 and 4: what the outputs held in the rows beyond shows nowhere."""
    case = next(
        c
        for c in make_cases(captured.manifest, budget="pr", ops=("attention",))
        if c.law == "captured_equals_eager" and "sinks" not in c.inputs
    )
    stored = make_data(case, 7)
    first, again = (Session(captured, case, stored, spare=5) for _ in range(2))
    (eager,) = again.run(stored, POISONS[0])
    for contents in (make_decoy(case, stored), make_decoy(case, stored), stored):
        (replayed,) = first.run(contents, POISONS[1])
    assert (first.executable.num_replays, again.executable.num_replays) == (2, 0)
    np.testing.assert_array_equal(replayed, eager)
    for session in (first, again):
        session.close()
