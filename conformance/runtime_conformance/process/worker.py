"""The program of a worker process: a device worker loads one backend and nothing else; a judge loads none."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import EntryPoint
from typing import IO, Any, NoReturn

from runtime.backend import ENTRY_POINT_GROUP, Device, DeviceConfig, DeviceInfo, Numerics, ReferenceDevice
from runtime.registry.discovery import load_backend
from runtime_conformance.case import Case, output_specs
from runtime_conformance.process.messages import read_message, write_message


def main(request: Mapping[str, Any]) -> NoReturn:
    """Answer requests on the pipes that this process was started with; what a backend prints goes to stderr."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has the limit
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if request["role"] == "judge":
        _serve(incoming, outgoing, _Judge())
    else:
        _serve(incoming, outgoing, _OnDevice(request))
    os._exit(0)  # at once: drivers like to crash or hang while the interpreter is taken down


def _serve(incoming: IO[bytes], outgoing: IO[bytes], answerer: _Judge | _OnDevice) -> None:
    while (message := read_message(incoming)) is not None:
        header, blobs = message
        try:
            answer, made = answerer.answer(header, blobs)
        except Exception as error:  # noqa: BLE001  a vendor's code may raise anything; the row tells it
            answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            made = []
        write_message(outgoing, answer, made)


class _OnDevice:
    """Runs cases, laws and checks on one open device."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = request
        self._device: Device | None = None

    @property
    def device(self) -> Device:
        """Opened at the first use."""
        if self._device is None:
            entry_point = EntryPoint(self.request["name"], self.request["value"], ENTRY_POINT_GROUP)
            info = self.request["device"]
            info = DeviceInfo(**{**info, "notices": tuple(info["notices"])})
            config = DeviceConfig(threads=self.request.get("threads"))
            self._device = load_backend(entry_point).open(info, config)
        return self._device

    def answer(self, header: dict[str, Any], blobs: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        what = header["do"]
        if what == "manifest":
            device = self.device
            return {"manifest": device.manifest.to_json(), "device": asdict(device.info)}, []
        if what == "checks":
            from runtime_conformance.device.checks import run_check

            return {"failure": run_check(self.device, header["name"])}, []
        if what == "program":
            from runtime_conformance.device.serving import run_program

            return run_program(self.device, header["name"], self.request["name"], header["seed"])
        if what == "time_copy":
            from runtime_conformance.device.timing import time_copy

            return time_copy(self.device, header["budget_s"]), []
        if what in ("collective", "give", "take"):
            return self._scale(what, header, blobs)
        case, seed = Case.from_json(header["case"]), header["seed"]
        if what == "time":
            from runtime_conformance.device.timing import time_case

            return time_case(self.device, case, seed, header["budget_s"])
        from runtime_conformance.device.laws import run_law
        from runtime_conformance.device.run import run_case

        outcome = run_law(self.device, case, seed) if case.law else run_case(self.device, case, seed)
        answer = {
            "status": outcome.status,
            "faults": outcome.faults,
            "reason": outcome.reason,
            "host_ns": outcome.host_ns,
            "kernels_run": outcome.kernels_run,
            "seconds": outcome.seconds,
            "numerics": asdict(outcome.rule.numerics) if outcome.rule else None,
            "flags": sorted(outcome.rule.flags) if outcome.rule else [],
            "num_outputs": len(outcome.runs[0]) if outcome.runs else 0,
        }
        return answer, [y for run in outcome.runs for y in run]

    def _scale(self, what: str, header: dict[str, Any], blobs: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        from runtime_conformance.device.collective import run_rank
        from runtime_conformance.device.laws import NotEvaluable

        try:
            if what == "collective":
                return run_rank(self.device, header)
            return _hand_over(what, self.device, self.request["name"], header, blobs)
        except NotEvaluable as why:
            return {"missing": str(why)}, []


def _hand_over(
    what: str, device: Device, name: str, header: dict[str, Any], blobs: list[Any]
) -> tuple[dict[str, Any], list[Any]]:
    from runtime_conformance.device.handover import give, take

    if what == "give":
        return {}, give(device, name, header["seed"], header["block_size"])
    logits = take(device, name, header["seed"], blobs, header["block_size"])
    return {"shape": list(logits.shape)}, [logits.reshape(-1).view("u1")]


class _Judge:
    """Holds the oracle; loads no backend."""

    def answer(self, header: dict[str, Any], blobs: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        if header["do"] in ("give", "take"):
            return _hand_over(header["do"], ReferenceDevice(name="host"), "host", header, blobs)
        if header["do"] == "judge_program":
            import numpy as np

            from runtime_conformance.device.serving import judge_logits

            numerics = [Numerics(**n) for n in header["numerics"]]
            logits = blobs[0].view(np.float32).reshape(header["shape"])
            first = header.get("first", 0)
            return {"reasons": judge_logits(logits, numerics, header["seed"], header["kv_format"], first)}, []
        case = Case.from_json(header["case"])
        n = header["num_outputs"]
        runs = [blobs[i : i + n] for i in range(0, len(blobs), n)]
        return judge_runs(case, header["seed"], Numerics(**header["numerics"]), runs), []


def judge_runs(case: Case, seed: int, numerics: Numerics, runs: list[list[Any]]) -> dict[str, Any]:
    """Judge every run of a case, and the case itself: reasons, figures, weaknesses."""
    from runtime_conformance.data import decode_data, make_data
    from runtime_conformance.device.run import decode_outputs
    from runtime_conformance.judging.judge import judge
    from runtime_conformance.judging.oracle import make_oracle
    from runtime_conformance.judging.power import weaknesses

    inputs = decode_data(case, make_data(case, seed))
    oracle = make_oracle(case, inputs, numerics, seed)
    specs = output_specs(case)
    reasons: list[str] = []
    figures: dict[str, float] = {}
    for run in runs:
        judgement = judge(case, decode_outputs(case, run, specs), oracle, inputs)
        reasons += [r for r in judgement.reasons if r not in reasons]
        figures = figures or judgement.figures
    weak = weaknesses(case, oracle, inputs) if not reasons and not case.law else []
    return {"reasons": reasons, "figures": figures, "weaknesses": weak, "is_exact": oracle.is_exact}
