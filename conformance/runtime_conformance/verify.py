"""Verification: a short run on the user's own machine, in one line with figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime_conformance.case import Case
from runtime_conformance.cases import make_cases
from runtime_conformance.runner import Lane, Options
from runtime_conformance.target import Target
from runtime_conformance.verdict import Row, Verdict

LIMIT_S = 25.0
"""Of half a minute; the rest is for starting processes."""
CASE_TIMEOUT_S = 15.0
_WRONG = (Verdict.FAIL, Verdict.FLAKY, Verdict.CRASH, Verdict.HANG, Verdict.HOST_EXECUTED)


@dataclass
class Verified:
    """The outcome: rows that ran, how many cases there was no time for, and how long it took."""

    rows: list[Row] = field(default_factory=list)
    num_left: int = 0
    seconds: float = 0.0

    @property
    def wrong(self) -> list[Row]:
        """Rows that are not as they should be."""
        return [r for r in self.rows if r.verdict in _WRONG]

    @property
    def executed(self) -> list[Row]:
        """Rows that say something about the device."""
        return [r for r in self.rows if r.verdict is Verdict.PASS or r.verdict in _WRONG]

    @property
    def passed(self) -> bool:
        """Something ran and nothing is wrong."""
        return bool(self.executed) and not self.wrong

    @property
    def summary(self) -> str:
        """Figures, as a clause."""
        if not self.executed:
            return "no check could be run: the device claims none of the operations that are compared"
        ops = len({r.op for r in self.executed})
        text = f"{len(self.executed) - len(self.wrong)}/{len(self.executed)} checks of {ops} operations agree"
        z = max((r.figures["rms_z"] for r in self.executed if "rms_z" in r.figures and not r.detail), default=None)
        nmse = max(
            (r.figures.get("nmse", 0.0) for r in self.executed if "rms_z" in r.figures and not r.detail), default=None
        )
        if z is not None:
            text += f", rms z at most {z:.2g} (limit 1.6)"
        if nmse is not None:
            text += f", NMSE at most {nmse:.1e}"
        if self.wrong:
            row = self.wrong[0]
            text += f"; {row.verdict} {row.case_id}: {row.detail.partition('; ')[0]}"
        return text


def verify(target: Target, extra: Sequence[Case] = (), *, seed: int = 7, limit_s: float = LIMIT_S) -> Verified:
    """Run cases of a model first, then the smoke budget, one operation after the other, until the time is over."""
    started = time.perf_counter()
    result = Verified()
    manifest = target.manifest()
    cases = list(extra) + _interleaved(list(make_cases(manifest, level="L2", budget="smoke")))
    lane = Lane(target, manifest, Options(budget="smoke", seed=seed, timeout_s=CASE_TIMEOUT_S))
    try:
        for i, case in enumerate(cases):
            # a machine that is busy elsewhere is no fault of the device: something is always compared
            if time.perf_counter() - started > limit_s and result.executed:
                result.num_left = len(cases) - i
                break
            row = lane.row(case)
            result.rows.append(row)
            if row.verdict in (Verdict.CRASH, Verdict.HANG):
                result.num_left = len(cases) - i - 1
                break
    finally:
        lane.close()
    result.seconds = time.perf_counter() - started
    return result


def _interleaved(cases: list[Case]) -> list[Case]:
    """Round-robin over operations, so that what fits into the time covers all of them."""
    by_op: dict[str, list[Case]] = {}
    for case in cases:
        by_op.setdefault(case.op, []).append(case)
    longest = max((len(c) for c in by_op.values()), default=0)
    return [group[i] for i in range(longest) for group in by_op.values() if i < len(group)]
