"""Runs cases in this very process, without workers: for the suite's own tests and for `selftest`, where speed counts.

An oracle is made once per case, seed and numerics, however many backends are judged by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from runtime.backend import Device, Numerics
from runtime_conformance.case import Case, output_specs
from runtime_conformance.data import decode_data, make_data
from runtime_conformance.device.laws import run_law
from runtime_conformance.device.run import decode_outputs, run_case
from runtime_conformance.judging.judge import judge
from runtime_conformance.judging.oracle import Oracle, make_oracle
from runtime_conformance.judging.power import weaknesses


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
        """What is wrong with the device in this case; None where its manifest does not claim it, or a law cannot be tested."""
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
