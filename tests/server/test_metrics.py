"""What Prometheus reads: names, kinds, and sums that agree with what was asked and answered."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from demo_server import DemoServer
from fake_async_llm import FakeAsyncLLM
from running_server import RunningServer

from runtime.engine.stats import EngineStats, StepCounts

Serve = Callable[..., RunningServer]
ROOT = Path(__file__).resolve().parents[2]
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
METRIC = re.compile(r"^([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)$")
LABEL = '{model_name="fake"}'


def read_metrics(server: RunningServer) -> dict[str, float]:
    with server.client() as client:
        answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {}
    for line in answer.text.splitlines():
        if not line.startswith("#"):
            match = METRIC.match(line)
            assert match, line
            found[match[1] + (match[2] or "")] = float(match[3])
    return found


def test_metrics_reconcile_with_the_requests(serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        for _ in range(10):
            client.post("/v1/chat/completions", json=CHAT)
        client.post("/v1/chat/completions", json={**CHAT, "n": 2, "max_tokens": 1, "stream": True})
        client.post("/v1/chat/completions", json={})
    metrics = read_metrics(server)
    assert metrics[f"runtime_generation_tokens_total{LABEL}"] == 132
    assert metrics[f"vllm:generation_tokens_total{LABEL}"] == 132
    assert metrics[f"runtime_ttft_seconds_count{LABEL}"] == 12
    assert metrics[f"vllm:time_to_first_token_seconds_count{LABEL}"] == 12
    assert metrics[f"vllm:inter_token_latency_seconds_count{LABEL}"] == 120
    assert metrics[f"vllm:e2e_request_latency_seconds_count{LABEL}"] == 12
    assert metrics[f"vllm:request_prompt_tokens_sum{LABEL}"] == 11 * 19
    assert metrics[f"vllm:prompt_tokens_cached_total{LABEL}"] == 11 * 16
    assert metrics[f"vllm:request_generation_tokens_sum{LABEL}"] == 132
    assert metrics[f"vllm:request_params_max_tokens_sum{LABEL}"] == 10 * 100 + 2
    for name, seconds in (("queue", 0.25), ("prefill", 0.5), ("decode", 1.0), ("inference", 1.5)):
        assert metrics[f"vllm:request_{name}_time_seconds_count{LABEL}"] == 12
        assert metrics[f"runtime_request_{name}_time_seconds_sum{LABEL}"] == pytest.approx(12 * seconds)
    assert metrics['vllm:request_success_total{model_name="fake",finished_reason="stop"}'] == 10
    assert metrics['runtime_http_responses_total{route="/v1/chat/completions",status="200"}'] == 11
    assert metrics['runtime_http_responses_total{route="/v1/chat/completions",status="400"}'] == 1
    assert metrics[f"vllm:num_requests_running{LABEL}"] == 0
    assert metrics["runtime_http_requests_in_flight"] == 1
    buckets = [v for k, v in metrics.items() if k.startswith("vllm:time_to_first_token_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 12


def test_requests_that_the_queue_has_no_room_for_are_counted(serve: Serve) -> None:
    server = serve(FakeAsyncLLM(queue_limit=0))
    with server.client() as client:
        for _ in range(3):
            assert client.post("/v1/chat/completions", json={**CHAT, "n": 4}).status_code == 429
    metrics = read_metrics(server)
    prefix = 'vllm:admission_rejections_total{model_name="fake",reason='
    assert (metrics[f'{prefix}"max_num_queued_reqs"}}'], metrics[f'{prefix}"max_num_queued_tokens"}}']) == (3, 0)
    assert metrics['runtime_admission_rejections_total{model_name="fake",limit="max_queued_requests"}'] == 3


def test_model_names_are_escaped_in_metrics(serve: Serve) -> None:
    server = serve(model_names=('a"b\\c',))
    assert read_metrics(server)['runtime_steps_total{model_name="a\\"b\\\\c"}'] == 0


def test_every_name_is_in_the_documentation_and_nothing_else_is(serve: Serve) -> None:
    with serve().client() as client:
        found = re.findall(r"^# TYPE (\S+) ", client.get("/metrics").text, re.MULTILINE)
    page = (ROOT / "docs/server.md").read_text("utf-8").partition("## Metrics")[2]
    documented = set(re.findall(r"`((?:runtime_|vllm:|llamacpp:)\w+)", page))
    assert set(found) == documented
    assert len(set(found)) == len(found)


def test_counters_of_a_restarted_engine_go_on_where_the_dead_one_ended() -> None:
    counts = StepCounts()
    counts.add(num_tokens=3, num_sequences=2, longest_sequence=40, seconds=0.5)
    counts.add(num_tokens=20_000, num_sequences=1, longest_sequence=7, seconds=0.5)
    assert (counts.steps, counts.tokens, counts.sequences, counts.longest_sequence) == (2, 20_003, 3, 40)
    by_tokens = tuple(counts.by_tokens)
    assert by_tokens == (0, 1, *[0] * 11, 1)
    dead = EngineStats(num_running=5, step_tokens=20_003, steps_by_tokens=by_tokens, longest_sequence=40, restarts=1)
    alive = EngineStats(num_running=1, step_tokens=8, steps_by_tokens=(0, 1, *[0] * 12), longest_sequence=8)
    both = alive.plus_counters(dead)
    assert both.steps_by_tokens == (0, 2, *[0] * 11, 1)
    assert (both.num_running, both.step_tokens, both.longest_sequence, both.restarts) == (1, 20_011, 40, 1)


@pytest.mark.oracle
def test_metrics_reconcile_with_a_log_of_a_hundred_requests_as_prometheus_reads_them() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    rng = random.Random(1)
    texts = ["The quick brown fox jumps over the lazy dog and runs away. " * k for k in (1, 4, 6)]
    bodies: list[dict[str, Any]] = []
    for _ in range(95):
        body: dict[str, Any] = {"prompt": rng.choice(texts) + rng.choice("abc"), "max_tokens": rng.randint(1, 12)}
        body |= {"temperature": 0, "ignore_eos": True, "n": rng.choice([1, 1, 1, 2])}
        bodies.append(body)
    bodies += [{"prompt": "a", "temperature": -1}, {"prompt": "word " * 600}, {"prompt": 7}, {}, {"model": "b"}]
    server = DemoServer({"max_num_seqs": 4, "max_model_len": 256})
    server.start()
    try:
        with server.client(timeout=60) as client:
            with ThreadPoolExecutor(16) as pool:
                answers = list(pool.map(lambda body: client.post("/v1/completions", json=body), bodies))
            page = client.get("/metrics").text
    finally:
        server.stop()
        server.join()
    good = [(body, answer.json()) for body, answer in zip(bodies, answers) if answer.status_code == 200]
    usages = [answer["usage"] for _, answer in good]
    num_samples = sum(body["n"] for body, _ in good)
    assert (len(good), [a.status_code for a in answers[95:]]) == (95, [400, 400, 400, 400, 400])
    families = {family.name: family for family in text_string_to_metric_families(page)}
    values = {s.name: s.value for f in families.values() for s in f.samples if set(s.labels) == {"model_name"}}

    def kind(name: str) -> str:
        return families[name].type

    assert kind("vllm:request_queue_time_seconds") == kind("vllm:iteration_tokens_total") == "histogram"
    assert kind("vllm:prompt_tokens_cached") == kind("llamacpp:prompt_seconds") == "counter"
    assert kind("vllm:kv_cache_usage_perc") == kind("llamacpp:n_busy_slots_per_decode") == "gauge"
    assert all(family.documentation for family in families.values())

    generated = sum(usage["completion_tokens"] for usage in usages)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    prompts = sum(usage["prompt_tokens"] for usage in usages)
    assert cached > 0
    assert values["vllm:generation_tokens_total"] == generated == values["llamacpp:tokens_predicted_total"]
    assert generated == sum(body["max_tokens"] * body["n"] for body, _ in good)
    assert values["vllm:prompt_tokens_total"] == values["vllm:request_prompt_tokens_sum"] == prompts
    assert values["vllm:prompt_tokens_cached_total"] == cached
    assert values["vllm:request_prompt_tokens_count"] == values["vllm:request_params_n_count"] == 95
    assert values["vllm:request_params_n_sum"] == num_samples
    assert values["vllm:request_params_max_tokens_sum"] == generated
    for name in ("queue_time_seconds", "prefill_time_seconds", "decode_time_seconds", "inference_time_seconds",
                 "generation_tokens", "num_preemptions"):  # fmt: skip
        assert values[f"vllm:request_{name}_count"] == num_samples, name
    assert values["vllm:e2e_request_latency_seconds_count"] == num_samples
    assert values["vllm:request_num_preemptions_sum"] == values["vllm:num_preemptions_total"]
    finished = {s.labels["finished_reason"]: s.value for s in families["vllm:request_success"].samples}
    assert finished == {"length": num_samples, "stop": 0}

    seconds = {name: values[f"vllm:request_{name}_time_seconds_sum"] for name in ("queue", "prefill", "decode")}
    assert values["vllm:request_inference_time_seconds_sum"] == pytest.approx(seconds["prefill"] + seconds["decode"])
    assert values["llamacpp:prompt_seconds_total"] == pytest.approx(seconds["prefill"])
    assert values["llamacpp:tokens_predicted_seconds_total"] == pytest.approx(seconds["decode"])
    assert sum(seconds.values()) <= values["vllm:e2e_request_latency_seconds_sum"]
    assert values["vllm:time_to_first_token_seconds_sum"] >= seconds["queue"] + seconds["prefill"]
    assert min(seconds.values()) > 0

    assert values["vllm:iteration_tokens_total_count"] == values["llamacpp:n_decode_total"]
    computed = values["llamacpp:prompt_tokens_total"]
    # A step computes tokens of prompts, and the last token of each sequence that goes on.
    assert values["vllm:iteration_tokens_total_sum"] == computed + generated - num_samples
    assert computed >= prompts - cached
    sequences = values["llamacpp:n_busy_slots_per_decode"] * values["llamacpp:n_decode_total"]
    assert sequences == pytest.approx(round(sequences))
    assert 1 < values["llamacpp:n_busy_slots_per_decode"] <= 4
    longest = max(usage["prompt_tokens"] + body["max_tokens"] - 1 for (body, _), usage in zip(good, usages))
    assert values["llamacpp:n_tokens_max"] == longest
    rate = values["llamacpp:predicted_tokens_seconds"]
    assert rate == pytest.approx(generated / values["llamacpp:tokens_predicted_seconds_total"])
    (cache,) = families["vllm:cache_config_info"].samples
    assert cache.labels == {
        "model_name": "demo", "cache_dtype": "auto", "enable_prefix_caching": "True", "block_size": "64",
        "num_gpu_blocks": "16",
    }  # fmt: skip
