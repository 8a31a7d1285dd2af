"""The page that Prometheus reads: families by name, from the server's metrics and the engine's stats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from runtime.engine.stats import STEP_TOKENS, EngineStats
from runtime.server.metrics import Histogram, Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_VLLM_LIMITS = {"max_queued_requests": "max_num_queued_reqs", "max_queued_tokens": "max_num_queued_tokens"}

Value = tuple[str, float]
"""(suffix and labels, value)"""


@dataclass(frozen=True)
class Facts:
    """What does not change while the server lives, and how the engine is.

    model   the name that answers carry
    state   of the engine
    cache   labels of `vllm:cache_config_info` beside those that the stats know
    """

    model: str
    state: str
    cache: Mapping[str, str] = field(default_factory=dict)


def render(metrics: Metrics, stats: EngineStats, facts: Facts) -> str:
    """The page in Prometheus' text format. Names and meanings are in docs/server.md."""
    label = _labels({"model_name": facts.model})
    lines: list[str] = []
    for families in (_gauges, _counters, _by_label, _histograms):
        for names, kind, text, values in families(metrics, stats, facts, label):
            for name in names:
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                lines += [f"{name}{suffix} {_number(value)}" for suffix, value in values]
    return "\n".join(lines) + "\n"


Family = tuple[Sequence[str], str, str, Sequence[Value]]
"""Names that stand for the same values, their kind, what they mean, and the values."""


def _gauges(metrics: Metrics, stats: EngineStats, facts: Facts, label: str) -> Iterator[Family]:
    used = 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0
    cache = {**facts.cache, "block_size": str(stats.block_size), "num_gpu_blocks": str(stats.num_blocks)}
    labels = f"{{{label}}}"
    for names, text, value in (
        (("runtime_num_requests_running", "vllm:num_requests_running", "llamacpp:requests_processing"),
         "Sequences that take part in steps", stats.num_running),
        (("runtime_num_requests_waiting", "vllm:num_requests_waiting", "llamacpp:requests_deferred"),
         "Requests that wait, preempted ones included", stats.num_waiting),
        (("runtime_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"),
         "Part of the KV blocks that requests hold, 0 .. 1", used),
        (("runtime_kv_blocks",), "KV blocks in all", stats.num_blocks),
        (("runtime_kv_blocks_free",), "KV blocks that no request holds", stats.num_free_blocks),
        (("runtime_kv_blocks_cached",), "Free KV blocks that hold a reusable prefix", stats.num_cached_blocks),
        (("runtime_kv_block_size_tokens",), "Tokens in a KV block", stats.block_size),
        (("runtime_engine_ready",), "1 while the engine takes steps, else 0", float(facts.state == "ready")),
        (("runtime_longest_sequence_tokens", "llamacpp:n_tokens_max"),
         "Tokens of the longest sequence so far", stats.longest_sequence),
        (("runtime_sequences_per_step", "llamacpp:n_busy_slots_per_decode"),
         "Sequences in a step, on average since the start", _ratio(stats.step_sequences, stats.steps)),
        (("runtime_prefill_tokens_per_second", "llamacpp:prompt_tokens_seconds"),
         "Computed tokens of prompts by the seconds that requests spent on them, since the start",
         _ratio(stats.prompt_tokens, stats.prefill_seconds)),
        (("runtime_decode_tokens_per_second", "llamacpp:predicted_tokens_seconds"),
         "Generated tokens by the seconds that requests spent on them, since the start",
         _ratio(stats.generation_tokens, stats.decode_seconds)),
    ):  # fmt: skip
        yield names, "gauge", text, [(labels, value)]
    info = f"{{{label},{_labels(cache)}}}"
    yield ("runtime_cache_config_info", "vllm:cache_config_info"), "gauge", "The KV cache, in labels", [(info, 1)]
    yield (
        ("runtime_http_requests_in_flight",),
        "gauge",
        "HTTP requests being answered",
        [("", metrics.in_flight)],
    )


def _counters(metrics: Metrics, stats: EngineStats, facts: Facts, label: str) -> Iterator[Family]:
    for names, text, value in (
        (("runtime_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"),
         "Tokens looked up in the prefix cache", stats.prefix_cache_queries),
        (("runtime_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"),
         "Tokens found in the prefix cache", stats.prefix_cache_hits),
        (("runtime_prompt_tokens_total", "vllm:prompt_tokens_total"), "Tokens of prompts", metrics.prompt_tokens.total),
        (("runtime_prompt_tokens_cached_total", "vllm:prompt_tokens_cached_total"),
         "Tokens of prompts that were found in the prefix cache", metrics.num_cached_tokens),
        (("runtime_prompt_tokens_computed_total", "llamacpp:prompt_tokens_total"),
         "Tokens of prompts that were computed; those found in the prefix cache are not", stats.prompt_tokens),
        (("runtime_prefill_seconds_total", "llamacpp:prompt_seconds_total"),
         "Seconds from being scheduled to the first token, summed over requests", stats.prefill_seconds),
        (("runtime_generation_tokens_total", "vllm:generation_tokens_total", "llamacpp:tokens_predicted_total"),
         "Generated tokens", stats.generation_tokens),
        (("runtime_decode_seconds_total", "llamacpp:tokens_predicted_seconds_total"),
         "Seconds from the first token to the last one so far, summed over requests", stats.decode_seconds),
        (("runtime_num_preemptions_total", "vllm:num_preemptions_total"),
         "Requests that gave their blocks back and started again", stats.preemptions),
        (("runtime_steps_total", "llamacpp:n_decode_total"), "Steps of the engine", stats.steps),
        (("runtime_step_seconds_total",), "Seconds spent in steps", stats.step_seconds),
        (("runtime_engine_restarts_total",), "Times that the engine died and was started again", stats.restarts),
    ):  # fmt: skip
        yield names, "counter", text, [(f"{{{label}}}", value)]


def _by_label(metrics: Metrics, stats: EngineStats, facts: Facts, label: str) -> Iterator[Family]:
    finished = sorted(stats.requests_finished.items())
    complete = [(reason, count) for reason, count in finished if reason in ("stop", "length")]
    refused = list(metrics.rejections.items())
    for name, text, key, rows in (
        ("runtime_requests_finished_total", "Finished samples by reason", "finished_reason", finished),
        ("vllm:request_success_total", "Samples that ended with stop or length", "finished_reason", complete),
        ("runtime_admission_rejections_total", "Requests that the queue had no room for", "limit", refused),
        ("vllm:admission_rejections_total", "Requests that the queue had no room for", "reason",
         [(_VLLM_LIMITS[limit], count) for limit, count in refused]),
    ):  # fmt: skip
        yield (name,), "counter", text, [(f'{{{label},{key}="{value}"}}', count) for value, count in rows]
    yield (
        ("runtime_http_responses_total",),
        "counter",
        "HTTP responses by route and status",
        [(f'{{route="{route}",status="{status}"}}', count) for (route, status), count in metrics.responses.items()],
    )


def _histograms(metrics: Metrics, stats: EngineStats, facts: Facts, label: str) -> Iterator[Family]:
    steps = Histogram(STEP_TOKENS)
    steps.counts, steps.total = list(stats.steps_by_tokens), stats.step_tokens
    for name, alias, text, histogram in (
        ("ttft_seconds", "time_to_first_token_seconds", "From arrival to the first token", metrics.ttft),
        ("itl_seconds", "inter_token_latency_seconds", "From one output to the next", metrics.itl),
        ("time_per_output_token_seconds", "request_time_per_output_token_seconds",
         "Mean time per token after the first, per sample", metrics.per_token),
        ("e2e_seconds", "e2e_request_latency_seconds", "From arrival to the end", metrics.e2e),
        ("request_queue_time_seconds", "", "From arrival at the engine until first scheduled", metrics.queue),
        ("request_prefill_time_seconds", "", "From first scheduled to the first token", metrics.prefill),
        ("request_decode_time_seconds", "", "From the first token to the last", metrics.decode),
        ("request_inference_time_seconds", "", "From first scheduled to the last token", metrics.inference),
        ("request_prompt_tokens", "", "Prompt tokens per request", metrics.prompt_tokens),
        ("request_generation_tokens", "", "Generated tokens per sample", metrics.generation_tokens),
        ("request_params_n", "", "Samples per prompt", metrics.n),
        ("request_params_max_tokens", "", "Most tokens that a sample might have", metrics.max_tokens),
        ("request_num_preemptions", "", "How often a sample gave its blocks back", metrics.preemptions),
        ("step_tokens", "iteration_tokens_total", "Tokens that a step computed", steps),
    ):  # fmt: skip
        yield (f"runtime_{name}", f"vllm:{alias or name}"), "histogram", text, list(_values(histogram, label))


def _values(histogram: Histogram, label: str) -> Iterator[Value]:
    running = 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts):
        running += count
        yield f'_bucket{{{label},le="{_number(bound)}"}}', running
    yield f"_sum{{{label}}}", histogram.total
    yield f"_count{{{label}}}", running


def _ratio(amount: float, whole: float) -> float:
    return amount / whole if whole else 0.0


def _labels(values: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escape(value)}"' for name, value in values.items())


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
