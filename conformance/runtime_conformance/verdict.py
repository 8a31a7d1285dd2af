"""Verdicts, rows of a report, and what they mean together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Verdict(str, Enum):
    """Of one case; the names are those of reports."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNSUPPORTED_REQUIRED = "UNSUPPORTED_REQUIRED"
    UNSUPPORTED_OPTIONAL = "UNSUPPORTED_OPTIONAL"
    CRASH = "CRASH"
    HANG = "HANG"
    HOST_EXECUTED = "HOST_EXECUTED"
    FLAKY = "FLAKY"
    WAIVED = "WAIVED"
    VACUOUS = "VACUOUS"
    SUITE_ERROR = "SUITE_ERROR"

    def __str__(self) -> str:
        return self.value


EXIT_CONFORMANT, EXIT_WRONG, EXIT_UNSUPPORTED, EXIT_CRASH, EXIT_SUITE, EXIT_EXPIRED = range(6)
_WRONG = (Verdict.FAIL, Verdict.FLAKY, Verdict.HOST_EXECUTED)
_EXECUTED = (Verdict.PASS, *_WRONG, Verdict.WAIVED, Verdict.CRASH, Verdict.HANG)


@dataclass
class Row:
    """One case in a report.

    figures   see `Judgement.figures`, and with `perf` those of timing
    detail    why it is not a pass; one sentence per fault
    expect    see `Case`: of a case outside of the manifest, a pass is a refusal
    seconds   is left out of comparisons: everything else is the same in every run with the same seed
    """

    case_id: str
    op: str
    level: str
    verdict: Verdict
    title: str
    required: bool = False
    detail: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    numerics: dict[str, str] = field(default_factory=dict)
    kind: str = ""
    origin: str = ""
    expect: str = "run"
    waiver: str = ""
    formats: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data, times apart."""
        return {
            "id": self.case_id,
            "op": self.op,
            "level": self.level,
            "verdict": self.verdict.value,
            "required": self.required,
            "title": self.title,
            "detail": self.detail,
            "kind": self.kind,
            "origin": self.origin,
            "expect": self.expect,
            "formats": self.formats,
            "numerics": self.numerics,
            "figures": self.figures,
            "waiver": self.waiver,
            "times": {"seconds": round(self.seconds, 4)},
        }


def spoken(name: str) -> str:
    """The name of a check as a person reads it: `copy_is_independent[q8_0]` becomes "copy is independent: q8_0"."""
    what, _, subject = name.partition("[")
    return what.replace("_", " ") + (f": {subject.rstrip(']')}" if subject else "")


def count(rows: Iterable[Row]) -> dict[str, int]:
    """Verdict -> number of rows, for every verdict."""
    counts = {v.value: 0 for v in Verdict}
    for row in rows:
        counts[row.verdict.value] += 1
    return counts


def exit_code(rows: Iterable[Row], *, has_expired_waiver: bool = False) -> int:
    """0 conformant, 1 wrong, 2 required but unsupported, 3 crash or hang, 4 fault of the suite, 5 expired waiver.

    The gravest counts: a fault of the suite, then crashes, wrong results, gaps, waivers. Nothing executed is wrong.
    """
    verdicts = [r.verdict for r in rows]
    if Verdict.SUITE_ERROR in verdicts:
        return EXIT_SUITE
    if Verdict.CRASH in verdicts or Verdict.HANG in verdicts:
        return EXIT_CRASH
    if any(v in _WRONG for v in verdicts):
        return EXIT_WRONG
    if Verdict.UNSUPPORTED_REQUIRED in verdicts:
        return EXIT_UNSUPPORTED
    if has_expired_waiver:
        return EXIT_EXPIRED
    if not any(v in _EXECUTED for v in verdicts):
        return EXIT_WRONG
    return EXIT_CONFORMANT
