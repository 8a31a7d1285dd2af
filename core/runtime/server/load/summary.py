"""From samples to figures: percentiles of what a user waits for, and tokens per second in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from runtime.server.load.client import Sample
from runtime.server.load.drive import Run

PERCENTILES = (50, 90, 99)


def percentile(values: Sequence[float], p: float) -> float:
    """The p-th percentile of sorted `values`, interpolated linearly (Hyndman and Fan 1996, type 7)."""
    position = (len(values) - 1) * p / 100
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (position - low)


def describe(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, extremes and percentiles; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    figures = {f"p{p}": percentile(ordered, p) for p in PERCENTILES}
    return {"mean": sum(ordered) / len(ordered), "min": ordered[0], **figures, "max": ordered[-1]}


def summarize(run: Run) -> dict[str, Any]:
    """The record of one run; see docs/benchmarks.md for its fields. Times are seconds."""
    good = [s for s in run.samples if s.error is None]
    output = sum(s.completion_tokens for s in good)
    return {
        "clients": run.clients,
        "rate": run.rate,
        "seconds": run.seconds,
        "requests": len(run.samples),
        "failed": len(run.samples) - len(good),
        "errors": dict(Counter(s.error for s in run.samples if s.error is not None).most_common(5)),
        "prompt_tokens": sum(s.prompt_tokens for s in good),
        "cached_tokens": sum(s.cached_tokens for s in good),
        "output_tokens": output,
        "output_tokens_per_s": output / run.seconds,
        "requests_per_s": len(good) / run.seconds,
        "ttft_s": describe([s.ttft for s in good]),
        "itl_s": describe([gap for s in good for gap in s.gaps]),
        "e2e_s": describe([s.end - s.start for s in good]),
        "samples": [_sample(s) for s in run.samples],
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "start_s": sample.start,
        "ttft_s": sample.ttft if sample.pieces else None,
        "e2e_s": sample.end - sample.start,
        "prompt_tokens": sample.prompt_tokens,
        "cached_tokens": sample.cached_tokens,
        "output_tokens": sample.completion_tokens,
        "status": sample.status,
        "error": sample.error,
    }
