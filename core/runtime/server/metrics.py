"""Counters and histograms of the server, and the page that Prometheus reads."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from runtime.engine.request import RequestOutput
from runtime.engine.stats import EngineStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_REQUEST_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
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
    n: Histogram = field(default_factory=lambda: Histogram((1, 2, 5, 10, 20)))
    responses: dict[tuple[str, int], int] = field(default_factory=dict)
    """HTTP responses by route and status."""
    in_flight: int = 0

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
            if num_tokens > 1:
                metrics.per_token.observe((self._last[i] - self._first[i]) / (num_tokens - 1))


@dataclass(frozen=True)
class _Family:
    name: str
    kind: str
    help: str
    samples: Sequence[tuple[str, float]]
    """(suffix and labels, value)"""


def render(metrics: Metrics, stats: EngineStats, *, model: str, state: str) -> str:
    """The page in Prometheus' text format. Names and meanings are in docs/server.md."""
    label = f'model_name="{_escape(model)}"'
    lines: list[str] = []
    for family in [*_engine_families(stats, label, state), *_server_families(metrics, label)]:
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
        lines += [f"{family.name}{suffix} {_number(value)}" for suffix, value in family.samples]
    return "\n".join(lines) + "\n"


def _engine_families(stats: EngineStats, label: str, state: str) -> Iterator[_Family]:
    labels = f"{{{label}}}"
    used = 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0
    for names, kind, text, value in (
        (("runtime_num_requests_running", "vllm:num_requests_running", "llamacpp:requests_processing"), "gauge",
         "Sequences that take part in steps", stats.num_running),
        (("runtime_num_requests_waiting", "vllm:num_requests_waiting", "llamacpp:requests_deferred"), "gauge",
         "Requests that wait, preempted ones included", stats.num_waiting),
        (("runtime_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"), "gauge",
         "Part of the KV blocks that requests hold, 0 .. 1", used),
        (("runtime_kv_blocks",), "gauge", "KV blocks in all", stats.num_blocks),
        (("runtime_kv_blocks_free",), "gauge", "KV blocks that no request holds", stats.num_free_blocks),
        (("runtime_kv_blocks_cached",), "gauge", "Free KV blocks that hold a reusable prefix", stats.num_cached_blocks),
        (("runtime_kv_block_size_tokens",), "gauge", "Tokens in a KV block", stats.block_size),
        (("runtime_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"), "counter",
         "Tokens looked up in the prefix cache", stats.prefix_cache_queries),
        (("runtime_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"), "counter",
         "Tokens found in the prefix cache", stats.prefix_cache_hits),
        (("runtime_prompt_tokens_computed_total", "llamacpp:prompt_tokens_total"), "counter",
         "Tokens of prompts that were computed; those found in the prefix cache are not", stats.prompt_tokens),
        (("runtime_generation_tokens_total", "vllm:generation_tokens_total", "llamacpp:tokens_predicted_total"),
         "counter", "Generated tokens", stats.generation_tokens),
        (("runtime_num_preemptions_total", "vllm:num_preemptions_total"), "counter",
         "Requests that gave their blocks back and started again", stats.preemptions),
        (("runtime_steps_total", "llamacpp:n_decode_total"), "counter", "Steps of the engine", stats.steps),
        (("runtime_step_seconds_total",), "counter", "Seconds spent in steps", stats.step_seconds),
        (("runtime_engine_restarts_total",), "counter", "Times that the engine died and was started again",
         stats.restarts),
        (("runtime_engine_ready",), "gauge", "1 while the engine takes steps, else 0", float(state == "ready")),
    ):  # fmt: skip
        for name in names:
            yield _Family(name, kind, text, [(labels, value)])
    finished = sorted(stats.requests_finished.items())
    for name, text, rows in (
        ("runtime_requests_finished_total", "Finished samples by reason", finished),
        ("vllm:request_success_total", "Samples that ended with stop or length",
         [(r, c) for r, c in finished if r in ("stop", "length")]),
    ):  # fmt: skip
        yield _Family(name, "counter", text, [(f'{{{label},finished_reason="{r}"}}', c) for r, c in rows])


def _server_families(metrics: Metrics, label: str) -> Iterator[_Family]:
    for name, alias, text, histogram in (
        ("ttft_seconds", "time_to_first_token_seconds", "From arrival to the first token", metrics.ttft),
        ("itl_seconds", "inter_token_latency_seconds", "From one output to the next", metrics.itl),
        ("time_per_output_token_seconds", "request_time_per_output_token_seconds",
         "Mean time per token after the first, per sample", metrics.per_token),
        ("e2e_seconds", "e2e_request_latency_seconds", "From arrival to the end", metrics.e2e),
        ("request_prompt_tokens", "request_prompt_tokens", "Prompt tokens per request", metrics.prompt_tokens),
        ("request_generation_tokens", "request_generation_tokens", "Generated tokens per sample",
         metrics.generation_tokens),
        ("request_params_n", "request_params_n", "Samples per prompt", metrics.n),
    ):  # fmt: skip
        samples = list(_histogram(histogram, label))
        yield _Family(f"runtime_{name}", "histogram", text, samples)
        yield _Family(f"vllm:{alias}", "histogram", text, samples)
    for name in ("runtime_prompt_tokens_total", "vllm:prompt_tokens_total"):
        yield _Family(name, "counter", "Tokens of prompts", [(f"{{{label}}}", metrics.prompt_tokens.total)])
    yield _Family(
        "runtime_http_responses_total",
        "counter",
        "HTTP responses by route and status",
        [(f'{{route="{route}",status="{status}"}}', count) for (route, status), count in metrics.responses.items()],
    )
    yield _Family("runtime_http_requests_in_flight", "gauge", "HTTP requests being answered", [("", metrics.in_flight)])


def _histogram(histogram: Histogram, label: str) -> Iterator[tuple[str, float]]:
    running = 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts):
        running += count
        yield f'_bucket{{{label},le="{_number(bound)}"}}', running
    yield f"_sum{{{label}}}", histogram.total
    yield f"_count{{{label}}}", running


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
