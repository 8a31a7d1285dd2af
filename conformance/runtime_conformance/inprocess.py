"""Runs cases in this very process, without workers: for the suite's own tests and for `selftest`, where speed counts.

An oracle is made once per case, seed and numerics, however many backends are judged by it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from runtime.backend import Device, Numerics, ReferenceDevice, RuntimeFault
from runtime_conformance.case import Case, Tensor, output_specs
from runtime_conformance.data import decode_data, make_data
from runtime_conformance.device.collective import is_judged, plan, run_rank
from runtime_conformance.device.handover import give, take
from runtime_conformance.device.laws import run_law
from runtime_conformance.device.run import decode_outputs, run_case
from runtime_conformance.device.serving import PROGRAMS, judge_logits, run_program
from runtime_conformance.device.timing import time_case, time_copy
from runtime_conformance.judging.judge import judge
from runtime_conformance.judging.oracle import Oracle, make_oracle
from runtime_conformance.judging.power import weaknesses
from runtime_conformance.perf import implausible
from runtime_conformance.process.worker import judge_runs


@dataclass
class Bench:
    """Judges many devices by the same cases."""

    seed: int
    _oracles: dict[tuple[str, Numerics], tuple[Oracle, dict[str, Any]]] = field(default_factory=dict)

    def oracle(self, case: Case, numerics: Numerics) -> tuple[Oracle, dict[str, Any]]:
        """The oracle of a case and its decoded inputs."""
        key = (case.id, numerics)
        if key not in self._oracles:
            inputs = decode_data(case, make_data(case, self.seed))
            self._oracles[key] = (make_oracle(case, inputs, numerics, self.seed), inputs)
        return self._oracles[key]

    def faults(self, device: Device, case: Case, *, computes_on_host: bool = False) -> list[str] | None:
        """What is wrong in this case; None where the manifest does not claim it, or a law cannot be tested."""
        outcome = run_law(device, case, self.seed) if case.law else run_case(device, case, self.seed)
        if outcome.status in ("unsupported", "vacuous"):
            return None
        if outcome.status in ("accepted", "failed"):
            return [outcome.reason]
        faults = list(outcome.faults)
        if outcome.status == "ran" and outcome.runs:
            assert outcome.rule is not None
            oracle, inputs = self.oracle(case, outcome.rule.numerics)
            specs = output_specs(case)
            for run in outcome.runs:
                faults += judge(case, decode_outputs(case, run, specs), oracle, inputs).reasons
        if outcome.status == "ran" and not faults:
            if outcome.host_ns > 0 and not computes_on_host:
                faults.append("computed on the host")
            elif outcome.kernels_run == 0:
                faults.append("no kernel of the device ran")
        return faults

    def weaknesses(self, case: Case, numerics: Numerics) -> list[str]:
        """See `runtime_conformance.judging.power`."""
        return weaknesses(case, *self.oracle(case, numerics))


def scale_faults(open_device: Callable[[], Device], seed: int, fail_within_s: float = 20.0) -> str | None:
    """The first fault of L3 that threads of this process show, each with a device of its own; None if there is none."""
    devices = [open_device() for _ in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, (case, world)) in enumerate(plan(("f32",)).items()):
            if name == "a_dead_peer_is_noticed":
                continue  # a thread cannot die
            header = {"name": name, "case": case.to_json(), "seed": seed, "fail_within_s": fail_within_s}
            header["group"] = [f"{folder}/{i}-{rank}" for rank in range(world)]
            with ThreadPoolExecutor(world) as pool:
                ranks = [pool.submit(_rank, devices[r], {**header, "rank": r}) for r in range(world)]
            answers = [r.result() for r in ranks]
            failure = next((f for f, _ in answers if f), None)
            if failure is None and is_judged(name):
                made = [blobs[0] for _, blobs in answers]
                runs = [[blob] for blob in made] if case.op == "swiglu_ffn@1" else [made]
                failure = next(iter(judge_runs(case, seed, Numerics(), runs)["reasons"]), None)
            if failure is not None:
                return f"{name}: {failure}"
    return _handover_fault(devices[0], seed)


def _rank(device: Device, header: dict[str, Any]) -> tuple[str, list[Any]]:
    try:
        answer, blobs = run_rank(device, header)
    except RuntimeFault as error:
        return f"{type(error).__name__}: {error}", []
    return answer["failure"], blobs


def _handover_fault(device: Device, seed: int) -> str | None:
    layout = device.manifest.kv_layouts[0]
    size, numerics = layout.block_sizes[0], [r.numerics for r in device.manifest.rules]
    sides = {"bench": device, "host": ReferenceDevice(name="host")}
    for giver, taker in (("bench", "host"), ("host", "bench")):
        caches = give(sides[giver], giver, seed, size)
        logits = take(sides[taker], taker, seed, caches, size)
        reasons = judge_logits(logits, numerics, seed, layout.formats[0], first=1)
        if reasons:
            return f"a cache goes from {giver} to {taker}: {reasons[0]}"
    return None


def serve_fault(device: Device, seed: int) -> str | None:
    """The first fault that a program of L2 shows; None if there is none."""
    numerics = [r.numerics for r in device.manifest.rules]
    for name in PROGRAMS:
        answer, (raw,) = run_program(device, name, "bench", seed)
        logits = raw.view("<f4").reshape(answer["shape"])
        reasons = judge_logits(logits, numerics, seed, device.manifest.kv_layouts[0].formats[0])
        if answer["failure"] or reasons:
            return f"{name}: {answer['failure'] or reasons[0]}"
    return None


def speed_fault(device: Device, seed: int, budget_s: float = 0.1) -> str | None:
    """What is wrong with a timed product: its result, or its speed; None if nothing is."""
    inputs = {"x": Tensor("f32", (1, 2048)), "weight": Tensor("f32", (1024, 2048), "weight", ("normal", 0.05))}
    case = Case("linear@1", inputs, {})
    answer, outputs = time_case(device, case, seed, budget_s)
    if answer["status"] != "ran":
        return str(answer["reason"])
    reasons = judge_runs(case, seed, Numerics(**answer["numerics"]), [outputs])["reasons"]
    fastest = min(answer["times"])
    copies = {"copied_bytes_per_s": time_copy(device, budget_s)["bytes_per_s"]}
    return next(iter(reasons), None) or implausible(answer["bytes"] / fastest, 0.0, copies) or None
