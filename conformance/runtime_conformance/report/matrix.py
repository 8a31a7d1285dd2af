"""The support matrix: what is native, in which formats, how exact and how fast; from one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.dtypes import FORMATS
from runtime.ops import CATALOGUE
from runtime_conformance.runner import Report
from runtime_conformance.verdict import Row, Verdict

_MISSING = (Verdict.UNSUPPORTED_OPTIONAL, Verdict.UNSUPPORTED_REQUIRED)
_NOT_RUN = (*_MISSING, Verdict.VACUOUS)
_WRONG = (Verdict.FAIL, Verdict.FLAKY, Verdict.HOST_EXECUTED, Verdict.CRASH, Verdict.HANG)


@dataclass(frozen=True)
class Support:
    """One operation: its state, counts, and the worst figures of passing cases."""

    op: str
    family: str
    state: str
    passed: int
    tested: int
    formats: tuple[str, ...]
    missing: tuple[str, ...]
    rms_z: float | None
    nmse: float | None
    speed: str = ""


def supports(report: Report) -> list[Support]:
    """One entry per operation of the catalogue, in its order; an operation without a rule runs on the host."""
    declared = {r.op for r in report.manifest.rules}
    speed = _speeds(report.performance)
    made = []
    for op in CATALOGUE:
        rows = [r for r in report.rows if r.op == op.key]
        if op.family == "collective" and op.key not in declared:
            continue  # the suite tests the communicator of the device, see the rows of L3
        ran = [r for r in rows if r.verdict not in _NOT_RUN]
        wrong = [r for r in ran if r.verdict in _WRONG]
        state = "native" if op.key in declared else "expanded" if op.is_composite else "host"
        if wrong:
            state = "wrong"
        passed = [r for r in ran if r.verdict is Verdict.PASS]
        formats = _formats(op.key, [r for r in passed if r.expect == "run"])
        refused = [r for r in rows if r.verdict in _MISSING or (r.expect == "outside" and r.verdict is Verdict.PASS)]
        missing = tuple(f for f in _formats(op.key, refused) if f not in formats)
        made.append(
            Support(
                op.key,
                op.family,
                state,
                len(passed),
                len(ran),
                formats,
                missing if op.key in declared else (),
                _largest(passed, "rms_z"),
                _largest(passed, "nmse"),
                speed.get(op.key, ""),
            )
        )
    return made


def _formats(op_key: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """Formats of the weight or cache, or else of the first input."""
    op = CATALOGUE[op_key]
    ports = [p.name for p in op.inputs if "*" in p.formats] or [p.name + ("0" if p.variadic else "") for p in op.inputs]
    return tuple(sorted({r.formats[ports[0]] for r in rows if ports[0] in r.formats}, key=_by_size))


def _by_size(name: str) -> tuple[bool, float, str]:
    """Plain formats first, the largest first among each."""
    fmt = FORMATS[name]
    return fmt.is_quantized, -fmt.bits, name


def _largest(rows: Sequence[Row], figure: str) -> float | None:
    values = [r.figures[figure] for r in rows if figure in r.figures]
    return max(values) if values else None


def _speeds(performance: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    best: dict[str, float] = {}
    for entry in performance:
        if entry.get("share") is not None:
            best[entry["op"]] = max(best.get(entry["op"], 0.0), entry["share"])
    return {op: f"{100 * share:.0f} %" for op, share in best.items()}


def markdown(report: Report) -> str:
    """The matrix for a README."""
    target = report.target
    lines = [
        f"# Support of {target.name}",
        "",
        f"{target.device.name}, {target.distribution} {target.version}, driver {target.device.driver or '-'}; "
        f"level {report.options.level}, seed {report.options.seed}, budget {report.options.budget}.",
        "",
        "| operation | runs | cases | formats | rms z | NMSE | of the roofline |",
        "|---|---|---|---|---|---|---|",
    ]
    for s in supports(report):
        cases = f"{s.passed}/{s.tested}" if s.tested else "-"
        figures = [("-" if v is None else f"{v:.2g}") for v in (s.rms_z, s.nmse)]
        formats = ", ".join(s.formats) or "-"
        if s.missing:
            formats += f" (not {', '.join(s.missing)})"
        lines.append(f"| {s.op} | {s.state} | {cases} | {formats} | {figures[0]} | {figures[1]} | {s.speed or '-'} |")
    return "\n".join(lines) + "\n"
