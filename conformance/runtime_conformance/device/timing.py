"""Times a case: every timed run has contents of its own, and the last one's result is judged."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from runtime.backend import Device, RuntimeFault, TensorSpec
from runtime.dtypes import FORMATS
from runtime_conformance.case import Case
from runtime_conformance.data import Stream, make_data
from runtime_conformance.device.run import POISONS, TIMEOUT_S, Session, match

_FEWEST, _MOST = 5, 200
_COPIES = (1 << 20, 1 << 25)
"""Bytes: what fits into caches, and what does not."""


def time_case(device: Device, case: Case, seed: int, budget_s: float) -> tuple[dict[str, Any], list[Any]]:
    """Times of one submission in seconds, and the outputs after the last one."""
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
        times = _timed_runs(session, stored, budget_s)
        outputs = [session.download(buffer, spec) for _, spec, buffer in session.outputs]
        work = session.node.work(session.sizes)
    except RuntimeFault as error:
        return {"status": "failed", "reason": str(error)}, []
    finally:
        session.close()
    return {
        "status": "ran",
        "times": times,
        "operations": work.operations,
        "bytes": work.bytes_read + work.bytes_written,
        "numerics": asdict(rule.numerics),
        "num_outputs": len(outputs),
    }, outputs


def _timed_runs(session: Session, stored: dict[str, Any], budget_s: float) -> list[float]:
    """Submissions until the time is over. Before each, the smallest input of numbers gets contents that it never had,
    so that no result can be remembered; before the last, its own.
    """
    bindings = dict(session.input_buffers)
    bindings |= {v.name: b for v, _, b in session.outputs if v not in session.graph.state_aliases()}
    tensors = session.case.inputs
    numbers = [n for n in session.input_buffers if tensors[n].spec.format.kind == "float"]
    varied = min(numbers, key=lambda n: stored[n].size, default=None)

    def timed() -> float:
        started = time.perf_counter()
        session.executable.submit(bindings, session.sizes).wait(TIMEOUT_S)
        return time.perf_counter() - started

    times: list[float] = []
    end = time.perf_counter() + budget_s
    contents = None if varied is None else stored[varied].copy()
    while len(times) < _FEWEST - 1 or (time.perf_counter() < end and len(times) < _MOST):
        if varied is not None:
            _vary(contents, tensors[varied].spec.format.block_bytes, len(times))
            _put(session, varied, contents)
        times.append(timed())
    if varied is not None:
        _put(session, varied, stored[varied])
    return [*times, timed()]


def _vary(contents: Any, size: int, number: int) -> None:
    """Turn one sign, and change the lowest bits of another element."""
    count = contents.size // size
    contents[(number * 7919 % count) * size + size - 1] ^= 0x80
    contents[(number * 104729 % count) * size] ^= 1 + number % 255


def _put(session: Session, name: str, contents: Any) -> None:
    spec = session.case.inputs[name].spec
    session.device.upload(session.input_buffers[name], contents.data, spec).wait(TIMEOUT_S)


def time_copy(device: Device, budget_s: float) -> dict[str, Any]:
    """Best bytes per second, read and written, of copies on the device: what no kernel can embellish."""
    import numpy as np

    best = 0.0
    for nbytes in _COPIES:
        spec = TensorSpec(FORMATS["f32"], (nbytes // 4096, 1024))
        source, target = device.allocate(spec), device.allocate(spec)
        data = Stream("copy").bytes(nbytes) & 0x3F
        device.upload(source, data.data, spec).wait(TIMEOUT_S)
        end = time.perf_counter() + budget_s
        for number in range(_MOST):
            if number >= _FEWEST and time.perf_counter() > end:
                break
            started = time.perf_counter()
            device.copy(target, source, spec).wait(TIMEOUT_S)
            best = max(best, 2 * nbytes / (time.perf_counter() - started))
        back = np.empty(nbytes, np.uint8)
        device.download(target, back.data, spec).wait(TIMEOUT_S)
        source.close()
        target.close()
        if not np.array_equal(back, data):
            return {"error": "a copy on the device is not a copy"}
    return {"bytes_per_s": best}
