"""Two results side by side: what broke, what was repaired, what is gone, and what drifted in speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SLOWER = 1.10
"""Ratio of medians that counts as a drift; prefill and decode are compared apart."""
_GOOD = ("PASS", "WAIVED")


def describe(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Lines: BROKEN, LOST (no longer supported or tested), REPAIRED, NEW, SLOWER, FASTER; then one of totals."""
    for name in ("device", "driver", "version", "suite", "numpy"):
        a, b = (r.get("fingerprint", {}).get(name) for r in (before, after))
        if a != b:
            yield f"{name}: {a} -> {b}"
    old = {r["id"]: r for r in before.get("rows", ())}
    new = {r["id"]: r for r in after.get("rows", ())}
    totals = dict.fromkeys(("broken", "repaired", "lost", "new"), 0)
    for case_id, row in new.items():
        was = old.get(case_id)
        if was is None:
            totals["new"] += 1
            continue
        good_before, good_now = was["verdict"] in _GOOD, row["verdict"] in _GOOD
        if good_before and not good_now:
            is_gap = row["verdict"].startswith("UNSUPPORTED")
            totals["lost" if is_gap else "broken"] += 1
            yield f"{'LOST' if is_gap else 'BROKEN'} {case_id} {was['verdict']} -> {row['verdict']}: {row['detail']}"
        elif good_now and not good_before:
            totals["repaired"] += 1
            yield f"REPAIRED {case_id} {was['verdict']} -> {row['verdict']}"
    gone = [i for i in old if i not in new]
    if gone:
        yield f"{len(gone)} cases of the baseline were not run, e.g. {gone[0]}"
    yield from drifts(before, after)
    yield ", ".join(f"{count} {name}" for name, count in totals.items())


def drifts(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Measurements whose median moved by more than a tenth, beyond the spread of both."""
    old = {(e["id"], e["phase"]): e for e in before.get("performance", ())}
    for entry in after.get("performance", ()):
        was = old.get((entry["id"], entry["phase"]))
        if was is None or not entry.get("median_s") or not was.get("median_s"):
            continue
        ratio = entry["median_s"] / was["median_s"]
        noise = 1 + entry.get("spread", 0.0) + was.get("spread", 0.0)
        if ratio > max(SLOWER, noise) or ratio < 1 / max(SLOWER, noise):
            word = "SLOWER" if ratio > 1 else "FASTER"
            yield (
                f"{word} {entry['id']} ({entry['phase']}, {entry['title']}): {was['median_s'] * 1e6:.0f} us -> "
                f"{entry['median_s'] * 1e6:.0f} us, {ratio:.2f} times"
            )
