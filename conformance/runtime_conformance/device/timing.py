"""Times a case: medians over repeated submissions, the result of the timed runs included."""

from __future__ import annotations

import time
from typing import Any

from runtime.backend import Device, RuntimeFault
from runtime_conformance.case import Case
from runtime_conformance.data import make_data
from runtime_conformance.device.run import POISONS, TIMEOUT_S, Session, match

_FEWEST, _MOST = 5, 200


def time_case(device: Device, case: Case, seed: int, budget_s: float) -> tuple[dict[str, Any], list[Any]]:
    """Times of one submission in seconds, and the outputs after the last one, which are judged too."""
    rule, reasons = match(device, case)
    if rule is None:
        return {"status": "unsupported", "reason": "; ".join(reasons)}, []
    stored = make_data(case, seed)
    try:
        session = Session(device, case, stored)
    except RuntimeFault as error:
        return {"status": "failed", "reason": str(error)}, []
    try:
        session.run(stored, POISONS[0])
        bindings = dict(session.input_buffers)
        bindings |= {v.name: b for v, _, b in session.outputs if v not in session.graph.state_aliases()}
        times: list[float] = []
        end = time.perf_counter() + budget_s
        while len(times) < _FEWEST or (time.perf_counter() < end and len(times) < _MOST):
            started = time.perf_counter()
            session.executable.submit(bindings, session.sizes).wait(TIMEOUT_S)
            times.append(time.perf_counter() - started)
        outputs = [session.download(buffer, spec) for _, spec, buffer in session.outputs]
        work = session.node.work(session.sizes)
    except RuntimeFault as error:
        return {"status": "failed", "reason": str(error)}, []
    finally:
        session.close()
    from dataclasses import asdict

    return {
        "status": "ran",
        "times": times,
        "operations": work.operations,
        "bytes": work.bytes_read + work.bytes_written,
        "numerics": asdict(rule.numerics),
        "num_outputs": len(outputs),
    }, outputs
