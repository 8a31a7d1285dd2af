"""Counters and histograms of the server."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.engine.request import RequestOutput, RequestTimes

REJECTION_REASONS = ("max_queued_requests", "max_queued_tokens")
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_REQUEST_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_PHASE_S = (0.001, 0.005, 0.01, 0.03, 0.1, *_REQUEST_S[2:], 1920, 7680)
"""As `_REQUEST_S`, and finer at its beginning: most requests wait for less than a tenth of a second."""
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Histogram:
    """Counts of observations up to each bound; the last count is of those above all bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass
class Metrics:
    """What the server itself has seen; what the engine has seen comes from its stats."""

    ttft: Histogram = field(default_factory=lambda: Histogram(_FIRST_TOKEN_S))
    itl: Histogram = field(default_factory=lambda: Histogram(_TOKEN_S))
    per_token: Histogram = field(default_factory=lambda: Histogram(_TOKEN_S))
    e2e: Histogram = field(default_factory=lambda: Histogram(_REQUEST_S))
    prompt_tokens: Histogram = field(default_factory=lambda: Histogram(_TOKENS))
    generation_tokens: Histogram = field(default_factory=lambda: Histogram(_TOKENS))
    max_tokens: Histogram = field(default_factory=lambda: Histogram(_TOKENS))
    n: Histogram = field(default_factory=lambda: Histogram((1, 2, 5, 10, 20)))
    queue: Histogram = field(default_factory=lambda: Histogram(_PHASE_S))
    prefill: Histogram = field(default_factory=lambda: Histogram(_PHASE_S))
    decode: Histogram = field(default_factory=lambda: Histogram(_PHASE_S))
    inference: Histogram = field(default_factory=lambda: Histogram(_PHASE_S))
    preemptions: Histogram = field(default_factory=lambda: Histogram((0, 1, 2, 5, 10, 20)))
    num_cached_tokens: int = 0
    """Tokens of prompts that were found in the prefix cache."""
    rejections: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REJECTION_REASONS, 0))
    """Requests that the queue had no room for, by the setting that refused them."""
    responses: dict[tuple[str, int], int] = field(default_factory=dict)
    """HTTP responses by route and status."""
    in_flight: int = 0

    def count_rejection(self, limit: str) -> None:
        """Count a request that was refused because of `limit`."""
        self.rejections[limit] += 1

    def observe_times(self, times: RequestTimes) -> None:
        """Take what the engine tells of a sample that is over."""
        self.queue.observe(times.queue_s)
        self.preemptions.observe(times.num_preemptions)
        self.max_tokens.observe(times.max_tokens)
        if times.prefill_s is not None:
            self.prefill.observe(times.prefill_s)
            self.decode.observe(times.decode_s)
            self.inference.observe(times.prefill_s + times.decode_s)

    def count_response(self, route: str, status: int) -> None:
        """Count an HTTP response."""
        self.responses[route, status] = self.responses.get((route, status), 0) + 1


class SampleClock:
    """Times of one prompt's samples: first token, tokens after it, the end."""

    def __init__(self, metrics: Metrics, num_samples: int, started: float) -> None:
        self._metrics = metrics
        self._started = started
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._num_tokens: dict[int, int] = {}
        self._num_prompt_tokens = 0
        metrics.n.observe(num_samples)

    def see(self, output: RequestOutput) -> None:
        """Take the times of an output that has just arrived."""
        now, i, metrics = time.monotonic(), output.index, self._metrics
        if output.num_prompt_tokens and not self._num_prompt_tokens:
            self._num_prompt_tokens = output.num_prompt_tokens
            metrics.prompt_tokens.observe(output.num_prompt_tokens)
            metrics.num_cached_tokens += output.num_cached_tokens
        if output.token_ids:
            if i not in self._first:
                self._first[i] = now
                self._num_tokens[i] = 0
                metrics.ttft.observe(now - self._started)
            else:
                metrics.itl.observe(now - self._last[i])
            self._last[i] = now
            self._num_tokens[i] += len(output.token_ids)
        if output.finish_reason is not None:
            metrics.e2e.observe(now - self._started)
            num_tokens = self._num_tokens.get(i, 0)
            metrics.generation_tokens.observe(num_tokens)
            if output.times is not None:
                metrics.observe_times(output.times)
            if num_tokens > 1:
                metrics.per_token.observe((self._last[i] - self._first[i]) / (num_tokens - 1))
