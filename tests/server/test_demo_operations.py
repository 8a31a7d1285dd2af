"""What operators rely on, over the demo model: isolation, priorities, limits, small memory, a killed engine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from demo_server import DemoServer
from device_in_use import packs_weights
from server_process import ServerProcess

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TEXT = "Once upon a time there was a runtime that ran on whatever hardware was present. " * 4
Start = Callable[..., DemoServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start({"max_num_seqs": 2}, api_keys=(...,))` starts a server; it is stopped at the end of the test."""
    servers: list[DemoServer] = []

    def begin(config: dict[str, Any] | None = None, **settings: Any) -> DemoServer:
        servers.append(DemoServer(config, **settings))
        servers[-1].start()
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()
        server.join()


def test_a_known_beginning_is_found_in_whole_blocks_under_the_same_key_and_salt_only(start: Start) -> None:
    server = start(api_keys=("a", "b"))
    with server.client() as client:

        def cached(key: str = "a", **fields: Any) -> int:
            body = {"prompt": TEXT, "max_tokens": 1, "temperature": 0, **fields}
            usage = client.post(PLAIN, json=body, headers={"x-api-key": key}).json()["usage"]
            assert usage["prompt_tokens"] == num_tokens
            found = usage["prompt_tokens_details"]["cached_tokens"]
            assert isinstance(found, int)
            return found

        num_tokens = client.post("/tokenize", json={"prompt": TEXT}, headers={"x-api-key": "a"}).json()["count"]
        block_size = server.llm.stats().block_size
        whole = (num_tokens - 1) // block_size * block_size  # at least the last token is computed
        assert whole > 0
        assert cached() == 0
        assert cached() == whole
        assert cached(user="Ann") == whole
        assert cached(n=3) == whole
        assert cached("b") == 0
        assert cached(cache_salt="s") == 0
        assert cached("b", cache_salt="s") == 0
        assert cached(cache_salt="s") == cached("b", cache_salt="s") == whole
        assert cached(skip_reading_prefix_cache=True) == cached(cache_prompt=False) == 0
        assert cached(cache_prompt=True) == whole
        client.post("/reset_prefix_cache", headers={"x-api-key": "a"})
        assert cached(cache_prompt=False) == 0
        assert cached() == whole  # what skipped reading has still been written


@contextmanager
def held(server: DemoServer) -> Iterator[None]:
    """The engine is held in a step inside."""
    gate = threading.Event()
    runner = server.llm._link.loaded.engine.runner
    compute = runner.run

    def wait_and_compute(parts: Any) -> Any:
        assert gate.wait(60)
        return compute(parts)

    runner.run = wait_and_compute
    try:
        yield
    finally:
        gate.set()
        runner.run = compute


def test_a_request_of_priority_minus_ten_finishes_first_among_fifty_that_wait(
    start: Start, eventually: Callable[..., None]
) -> None:
    server = start({"scheduling_policy": "priority", "max_num_seqs": 1})
    scheduler = server.llm._link.loaded.engine.scheduler
    finish, finished, statuses = scheduler.finish, [], []

    def note_and_finish(request: Any, reason: Any) -> None:
        finished.append(request.priority)
        finish(request, reason)

    scheduler.finish = note_and_finish
    with server.client(timeout=60, limits=httpx.Limits(max_connections=None)) as client:

        def post(priority: int) -> None:
            body = {"prompt": "a", "max_tokens": 4, "ignore_eos": True, "priority": priority}
            statuses.append(client.post(PLAIN, json=body).status_code)

        def begin(priority: int) -> threading.Thread:
            thread = threading.Thread(target=post, args=(priority,))
            thread.start()
            return thread

        with held(server):
            threads = [begin(7)]
            eventually(lambda: len(scheduler.running) == 1)
            threads += [begin(i % 3) for i in range(50)]
            eventually(lambda: len(server.llm._streams) == 51)
            threads.append(begin(-10))
            eventually(lambda: len(server.llm._streams) == 52)
        for thread in threads:
            thread.join()
    assert statuses == [200] * 52
    assert finished == [7, -10, *sorted(i % 3 for i in range(50))]


def test_prompts_that_wait_are_limited_by_their_tokens_too(start: Start, eventually: Callable[..., None]) -> None:
    server = start({"max_num_seqs": 1, "max_queued_tokens": 100})
    with server.client(timeout=60) as client:

        def ask(num_tokens: int) -> httpx.Response:
            return client.post(PLAIN, json={"prompt": [7] * num_tokens, "max_tokens": 1})

        with held(server):
            waiting = threading.Thread(target=ask, args=(90,))
            waiting.start()
            eventually(lambda: len(server.llm._streams) == 1)
            refused = ask(20)
            assert ask(500).status_code == 429
            fits = threading.Thread(target=ask, args=(10,))
            fits.start()
            eventually(lambda: len(server.llm._streams) == 2)
        waiting.join()
        fits.join()
        assert ask(500).status_code == 200  # alone, any may
        page = client.get("/metrics").text
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    message = "90 tokens of prompts wait and 20 came, 100 may (max_queued_tokens); try again later"
    assert refused.json()["error"]["message"] == message
    assert 'vllm:admission_rejections_total{model_name="demo",reason="max_num_queued_tokens"} 2' in page


def test_running_requests_are_aborted_by_their_ids_and_only_by_their_own_key(
    start: Start, eventually: Callable[..., None]
) -> None:
    server = start(api_keys=("a", "b"))
    answers: list[httpx.Response] = []
    with server.client(timeout=60, headers={"x-api-key": "a"}) as client:

        def abort(key: str, *names: str) -> list[str]:
            answer = client.post("/abort_requests", json={"request_ids": names}, headers={"x-api-key": key})
            aborted = answer.json()["aborted"]
            assert isinstance(aborted, list)
            return aborted

        def ask(name: str) -> threading.Thread:
            body = {"prompt": ["a", "b"], "max_tokens": 400, "ignore_eos": True}
            send = threading.Thread(
                target=lambda: answers.append(client.post(PLAIN, json=body, headers={"x-request-id": name}))
            )
            send.start()
            return send

        with held(server):
            threads = [ask("mine"), ask("too")]
            eventually(lambda: len(server.llm._streams) == 4)
            assert abort("b", "mine", "too") == []
            ids = list(server.service.generations)
            assert abort("a", "mine", "nobody's") == ["mine"]
        threads[0].join()
        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "aborted")
        threads[1].join()
        assert answers[1].status_code == 200
        assert answers[1].json()["id"] in ids
        eventually(lambda: server.llm.stats().num_free_blocks == server.llm.stats().num_blocks)
        assert server.service.generations == {}
        assert server.llm.stats().requests_finished["aborted"] == 2


def test_a_fingerprint_belongs_to_the_model_and_the_version_and_the_tier_of_service_is_ignored(start: Start) -> None:
    from runtime import __version__

    server = start()
    with server.client() as client:
        body = {"messages": QUESTION, "max_tokens": 1, "service_tier": "flex", "x": 1}
        answers = [client.post(CHAT, json=body), client.post(PLAIN, json={"prompt": "a", "service_tier": "auto"})]
    assert answers[0].headers["x-ignored-fields"] == "service_tier, x"
    (fingerprint,) = {answer.json()["system_fingerprint"] for answer in answers}
    assert fingerprint == f"hal-runtime-{__version__}-{server.llm.fingerprint[:12]}"
    assert server.llm.fingerprint == start({"max_num_seqs": 1}).llm.fingerprint


def test_a_model_is_told_apart_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    from runtime.engine.weight_cache import content_digest

    for name, content in (("a", b"x" * 100), ("b", b"x" * 100), ("c", b"x" * 99 + b"y"), ("d", b"x" * 101)):
        (tmp_path / name).write_bytes(content)
    a, b, c, d = (content_digest([tmp_path / name]) for name in "abcd")
    assert a == b
    assert len({a, c, d, content_digest([tmp_path / "a", tmp_path / "b"])}) == 4


def test_in_little_memory_the_context_is_fitted_and_the_pool_never_exceeds_what_sequences_can_use(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = start({"max_num_seqs": 1, "max_model_len": 1024})
    stats = one.llm.stats()
    assert stats.num_blocks * stats.block_size == 1024
    nbytes = one.llm._model.file.nbytes
    # A control group that leaves room for the weights and little else.
    monkeypatch.setattr("runtime.backend.host._system_memory", lambda: (nbytes + 1_000_000, 1 << 30))
    small = start({"max_num_seqs": 4, "max_model_len": None})
    assert small.llm.max_model_len < 1024
    assert small.llm.max_model_len == small.llm.stats().num_blocks * stats.block_size
    assert any("memory; the model's limit is 1024" in line for line in small.llm.status)
    with small.client() as client:
        answer = client.post(CHAT, json={"messages": QUESTION, "temperature": 0})
    assert answer.json()["choices"][0]["message"]["content"] == "Paris."


def test_a_fitted_context_can_be_asked_for_by_name_and_weights_are_cached_where_they_are_packed(tmp_path: Path) -> None:
    with ServerProcess("--ctx", "auto", "--weight-cache", str(tmp_path), "--log-level", "info") as server:
        assert "context 1024" in server.lines[-1]
        with httpx.Client(base_url=server.url) as client:
            assert client.get("/health").status_code == client.get("/v1/health").status_code == 200
        if not packs_weights():
            server.hears("has no packed weights to keep; nothing is cached")
            return
        deadline = time.monotonic() + 10
        while not list(tmp_path.glob("*.weights")):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.slow
def test_an_engine_that_is_killed_fails_what_runs_with_the_reason_and_comes_back() -> None:
    with ServerProcess("--log-level", "info") as server, httpx.Client(base_url=server.url, timeout=60) as client:
        endless = {"messages": QUESTION, "ignore_eos": True}
        answers: list[httpx.Response] = []

        def ask_until_it_fails() -> None:
            while (answer := client.post(CHAT, json={**endless, "n": 2})).status_code == 200:
                pass
            answers.append(answer)

        asking = [threading.Thread(target=ask_until_it_fails) for _ in range(3)]
        for thread in asking:
            thread.start()
        with client.stream("POST", CHAT, json={**endless, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            for child in server.children():
                os.kill(child, signal.SIGKILL)
            last = [line for line in lines if line][-1]
        for thread in asking:
            thread.join()
        not_ready = client.get("/ready")
        assert (not_ready.status_code, not_ready.json()) == (503, {"status": "restarting"})
        assert client.get("/health").status_code == 503
        assert client.get("/live").status_code == 200
        refused = client.post(CHAT, json={"messages": QUESTION})
        for error in (*answers, refused):
            assert (error.status_code, error.json()["error"]["code"]) == (503, "engine_died")
            assert "killed by signal 9 (SIGKILL)" in error.json()["error"]["message"]
            assert int(error.headers["retry-after"]) >= 1
        assert last.startswith('data: {"error":')
        assert "killed by signal 9 (SIGKILL)" in last
        generated = metric(client, "runtime_generation_tokens_total")
        assert generated > 0
        deadline = time.monotonic() + 60
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert metric(client, "runtime_kv_blocks") > 0  # known before anything was computed
        assert metric(client, "runtime_engine_restarts_total") == 1
        answer = client.post(CHAT, json={"messages": QUESTION})
        assert answer.json()["choices"][0]["message"]["content"] == "Paris."
        assert metric(client, "runtime_generation_tokens_total") > generated
        server.hears("the engine was started again")


def metric(client: httpx.Client, name: str) -> float:
    page = client.get("/metrics").text
    (value,) = (line.rpartition(" ")[2] for line in page.splitlines() if line.startswith(f"{name}{{"))
    return float(value)
