"""A run for a terminal: the verdict on one page, every failure with the command that repeats it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from runtime_conformance import SUITE_VERSION
from runtime_conformance.levels import LEVEL_NAMES, LEVELS
from runtime_conformance.runner import Report
from runtime_conformance.verdict import EXIT_CONFORMANT, Verdict, count

_SHOWN = (Verdict.CRASH, Verdict.HANG, Verdict.SUITE_ERROR, Verdict.FAIL, Verdict.FLAKY, Verdict.HOST_EXECUTED)
MAX_LINES = 30


def headline(report: Report) -> str:
    """Device, suite, seed and the numerics that most rules declare."""
    device = report.target.device
    driver = f" (driver {device.driver})" if device.driver else f" ({device.name})"
    declared = Counter(
        f"act={r.numerics.activation} acc={r.numerics.accumulate}" for r in report.manifest.rules
    ).most_common(1)
    numerics = f" · numerics {declared[0][0]}" if declared else ""
    return f"{report.target.name}:{device.index}{driver} · suite {SUITE_VERSION} · seed {report.options.seed}{numerics}"


def tallies(report: Report) -> str:
    """Passes per level, share of host work, vacuous cases."""
    parts = []
    for level in LEVELS:
        rows = [r for r in report.rows if r.level == level and r.verdict not in _NOT_COUNTED]
        if rows:
            passed = sum(r.verdict is Verdict.PASS for r in rows)
            parts.append(f"{level} {LEVEL_NAMES[level]} {passed}/{len(rows)}")
    counts = count(report.rows)
    executed = [r for r in report.rows if r.verdict not in _NOT_COUNTED]
    host = 100 * counts["HOST_EXECUTED"] / max(1, len(executed))
    parts.append(f"host work {host:.1f} %")
    parts.append(f"vacuous {counts['VACUOUS']}")
    if counts["UNSUPPORTED_OPTIONAL"]:
        parts.append(f"optional, not supported {counts['UNSUPPORTED_OPTIONAL']}")
    if counts["WAIVED"]:
        parts.append(f"waived {counts['WAIVED']}")
    return "      ".join(parts)


_NOT_COUNTED = (Verdict.UNSUPPORTED_OPTIONAL, Verdict.UNSUPPORTED_REQUIRED, Verdict.VACUOUS, Verdict.WAIVED)


def text(report: Report, out: str | None = None) -> Iterator[str]:
    """Lines of the summary."""
    yield headline(report)
    yield tallies(report)
    shown = 0
    wrong = [r for v in _SHOWN for r in report.rows if r.verdict is v]
    for row in wrong[:MAX_LINES]:
        yield f"{row.verdict} {row.case_id}  {row.title}: {row.detail}"
        if "@" in row.op:
            yield f"     repro: runtime conformance repro {row.case_id} --backend {report.target.name}"
        shown += 1
    gaps = [r for r in report.rows if r.verdict is Verdict.UNSUPPORTED_REQUIRED]
    for row in gaps[: max(5, MAX_LINES - shown)]:
        yield f"{row.verdict} {row.case_id}  {row.title}: {row.detail}"
    hidden = len(wrong) + len(gaps) - min(len(wrong), MAX_LINES) - min(len(gaps), max(5, MAX_LINES - shown))
    if hidden:
        yield f"and {hidden} more in the report"
    for waiver in report.expired:
        yield f"EXPIRED waiver {waiver.pattern} ({waiver.url}) ended on {waiver.expires}"
    for note in report.notes:
        yield f"note: {note}"
    code = report.exit_code
    word = "conformant" if code == EXIT_CONFORMANT else f"not conformant (exit {code})"
    where = f" · {out}/index.html {out}/junit.xml {out}/result.json" if out else ""
    yield f"{word}{where}"
