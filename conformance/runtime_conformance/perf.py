"""Performance: operations over the shapes of real models, against the roofline measured through the same interface.

Every timed run has contents of its own and the outputs of the last go before the judge. What is faster than the
device's own roofline is refused as implausible; and no roofline is believed that lies far above what plain copies show.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.backend import Manifest
from runtime.executor import matches
from runtime_conformance.case import Case, Tensor, facts
from runtime_conformance.cases import spaces
from runtime_conformance.process.pool import Worker, WorkerCrashed, WorkerHung
from runtime_conformance.runner import Options
from runtime_conformance.target import OPEN_TIMEOUT_S, Target

BUDGET_S = 0.5
"""Time per measurement."""
IMPLAUSIBLE = 1.5
"""More than this share of a roofline that was itself measured is no speed, it is work that was not done."""
BEYOND_COPIES = 8.0
"""Caches close to the arithmetic are this much faster than copies, at most; computing ahead of the clock is more."""
_BY_ROWS: Mapping[str, Mapping[str, Any]] = {"decode": {"T": 1}, "prefill": {"T": 64}}
_BY_BATCH: Mapping[str, Mapping[str, Any]] = {"decode": {"batch": "decode_batch"}, "prefill": {"batch": "prefill"}}


def perf_cases(manifest: Manifest, ops: Sequence[str]) -> Iterator[tuple[str, Case]]:
    """(phase, case): few tokens for decode, many for prefill, over the recorded shapes of each operation."""
    for space in spaces(manifest):
        if not any(matches(p, space.op.partition("@")[0]) or matches(p, space.op) for p in ops):
            continue
        for row in space.models:
            changes = _BY_ROWS if "T" in row else _BY_BATCH if "batch" in row else {"mixed": {}}
            for phase, change in changes.items():
                case = space.build({**row, **change})
                if case is not None and manifest.match(case.op, facts(case)).coverage == "full":
                    yield phase, case.but(origin="model")


def roofline_cases(manifest: Manifest) -> dict[str, list[Case]]:
    """What measures the device itself: the largest products and copies, in every form it claims."""

    def linear(t: int, n: int, k: int, fmt: str) -> Case:
        inputs = {"x": Tensor("f32", (t, k)), "weight": Tensor(fmt, (n, k), "weight", ("normal", 0.05))}
        return Case("linear@1", inputs, {}, "normal")

    formats = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k")
    bandwidth = [linear(1, 2048, 4096, f) for f in formats]
    bandwidth.append(Case("add@1", {"a": Tensor("f32", (512, 4096)), "b": Tensor("f32", (512, 4096))}))
    arithmetic = [linear(128, 1024, 2048, f) for f in formats]
    # small sizes stay in caches, which are faster than memory: they have a roofline of their own
    cached = [
        Case("add@1", {"a": Tensor("f32", (16, 2048)), "b": Tensor("f32", (16, 2048))}),
        linear(1, 256, 1024, "f32"),
    ]
    found = {"bandwidth": bandwidth, "arithmetic": arithmetic, "cached": cached}
    return {
        name: [c for c in cases if manifest.match(c.op, facts(c)).coverage == "full"] for name, cases in found.items()
    }


def measure(target: Target, manifest: Manifest, options: Options, budget_s: float = BUDGET_S) -> list[dict[str, Any]]:
    """One entry per measurement: median, spread, rates, share of the roofline, verdict (ok, wrong, implausible)."""
    device, judge = target.worker(), Worker({"role": "judge"})
    try:
        roof = _roofline(device, manifest, options, budget_s)
        return [
            _entry(phase, case, device, judge, roof, options, budget_s)
            for phase, case in perf_cases(manifest, options.ops)
        ]
    finally:
        device.close()
        judge.close()


def _roofline(device: Worker, manifest: Manifest, options: Options, budget_s: float) -> dict[str, float]:
    """Best bytes/s from memory and from caches, best operations/s, and bytes/s of plain copies."""
    roof = {"bytes_per_s": 0.0, "cached_bytes_per_s": 0.0, "operations_per_s": 0.0}
    answer, _ = _question(device, {"do": "time_copy", "budget_s": budget_s}, options)
    roof["copied_bytes_per_s"] = answer.get("bytes_per_s", 0.0)
    for name, cases in roofline_cases(manifest).items():
        for case in cases:
            answer, _ = _ask(device, case, options, budget_s)
            if answer.get("status") != "ran":
                continue
            fastest = min(answer["times"])
            key = {"bandwidth": "bytes_per_s", "cached": "cached_bytes_per_s"}.get(name, "operations_per_s")
            amount = answer["operations"] if key == "operations_per_s" else answer["bytes"]
            roof[key] = max(roof[key], amount / fastest)
    roof["cached_bytes_per_s"] = max(roof["cached_bytes_per_s"], roof["bytes_per_s"])
    return roof


def _ask(device: Worker, case: Case, options: Options, budget_s: float) -> tuple[dict[str, Any], list[Any]]:
    question = {"do": "time", "case": case.to_json(), "seed": options.seed, "budget_s": budget_s}
    return _question(device, question, options)


def _question(device: Worker, question: dict[str, Any], options: Options) -> tuple[dict[str, Any], list[Any]]:
    try:
        return device.ask(question, timeout_s=options.timeout_s + OPEN_TIMEOUT_S)
    except (WorkerCrashed, WorkerHung) as event:
        return {"status": "failed", "reason": str(event)}, []


def implausible(bytes_per_s: float, operations_per_s: float, roof: Mapping[str, float]) -> str:
    """Why a speed cannot be, or "". A roof of 0 was not measured and limits nothing."""
    limits = {
        "operations_per_s": (operations_per_s, IMPLAUSIBLE, "the arithmetic that this device showed itself"),
        "cached_bytes_per_s": (bytes_per_s, IMPLAUSIBLE, "the roofline that this device showed itself"),
        "copied_bytes_per_s": (bytes_per_s, BEYOND_COPIES, "the speed of its copies"),
    }
    for name, (speed, factor, what) in limits.items():
        if roof.get(name) and speed > factor * roof[name]:
            return f"{speed / roof[name]:.1f} times {what}"
    return ""


def _entry(
    phase: str,
    case: Case,
    device: Worker,
    judge: Worker,
    roof: Mapping[str, float],
    options: Options,
    budget_s: float,
) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": case.id, "op": case.op, "phase": phase, "title": case.note or case.describe()}
    answer, blobs = _ask(device, case, options, budget_s)
    if answer.get("status") != "ran":
        return {**entry, "verdict": "failed", "detail": answer.get("reason") or answer.get("error", "")}
    times = sorted(answer["times"])
    median = statistics.median(times)
    quarter = max(1, len(times) // 4)
    spread = (times[-quarter] - times[quarter - 1]) / median
    bytes_per_s, operations_per_s = answer["bytes"] / median, answer["operations"] / median
    shares = []
    if roof["bytes_per_s"]:
        shares.append(bytes_per_s / roof["bytes_per_s"])
    if roof["operations_per_s"]:
        shares.append(operations_per_s / roof["operations_per_s"])
    question = {
        "do": "judge",
        "case": case.to_json(),
        "seed": options.seed,
        "numerics": answer["numerics"],
        "num_outputs": answer["num_outputs"],
    }
    verdict, detail = "ok", ""
    # a cache that is overwritten in place has been written many times: the same bytes each time
    judged, _ = judge.ask(question, blobs, timeout_s=10 * options.timeout_s)
    if judged.get("reasons") or judged.get("error"):
        verdict, detail = "wrong", "; ".join(judged.get("reasons", ())) or judged["error"]
    elif detail := implausible(bytes_per_s, operations_per_s, roof):
        verdict = "implausible"
    return {
        **entry,
        "verdict": verdict,
        "detail": detail,
        "median_s": median,
        "spread": round(spread, 4),
        "bytes_per_s": bytes_per_s,
        "operations_per_s": operations_per_s,
        "share": max(shares) if shares else None,
        "runs": len(times),
    }


def table(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines for a terminal."""
    for e in entries:
        if "median_s" not in e:
            yield f"{e['verdict'].upper()} {e['id']} {e['phase']} {e['title']}: {e['detail']}"
            continue
        share = "" if e["share"] is None else f", {100 * e['share']:.0f} % of the roofline"
        line = (
            f"{e['id']}  {e['phase']:7}  {e['median_s'] * 1e6:10.1f} us +- {100 * e['spread']:.0f} %  "
            f"{e['bytes_per_s'] / 1e9:8.2f} GB/s  {e['operations_per_s'] / 1e9:9.2f} G op/s{share}  {e['title']}"
        )
        yield line + (f"  {e['verdict'].upper()}: {e['detail']}" if e["verdict"] != "ok" else "")
