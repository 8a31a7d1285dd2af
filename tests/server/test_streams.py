"""Streams byte by byte: events, pings, failures on the way, and what happens when the client leaves."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_async_llm import FakeAsyncLLM
from running_server import RunningServer

Serve = Callable[..., RunningServer]
Eventually = Callable[..., None]
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
LONG = "x" * 400


def events(text: str) -> list[Any]:
    """The data of each event, decoded; comments and [DONE] as they are."""
    assert text.endswith("\n\n")
    found: list[Any] = []
    for event in text[:-2].split("\n\n"):
        assert "\n" not in event
        data = event.removeprefix("data: ")
        found.append(json.loads(data) if data.startswith("{") else data)
    return found


def raw(server: RunningServer, body: dict[str, Any], path: str = "/v1/chat/completions") -> socket.socket:
    """A connection on which a request has been sent, and nothing read."""
    connection = socket.create_connection(server.listener.getsockname()[:2], timeout=5)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def test_a_stream_is_events_in_the_order_of_tokens_and_done(fake: RunningServer) -> None:
    with fake.client() as client:
        answer = client.post("/v1/chat/completions", json={**CHAT, "stream": True, "max_tokens": 2})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    first, second, done = events(answer.text)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": "H"}, "logprobs": None, "finish_reason": None}
    ]
    assert second["choices"][0]["delta"] == {"content": "e"}
    assert second["choices"][0]["finish_reason"] == "length"
    assert first["id"] == second["id"]
    assert "usage" not in first
    assert done == "[DONE]"


def test_a_character_of_several_tokens_comes_whole(serve: Serve) -> None:
    server = serve(FakeAsyncLLM("né"))
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    *chunks, _ = events(answer.text)
    assert [c["choices"][0]["delta"]["content"] for c in chunks] == ["n", "é"]


def test_usage_can_come_with_every_event(fake: RunningServer) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path, body in (("chat/completions", CHAT), ("completions", {"prompt": "a"})):
        with fake.client() as client:
            answer = client.post(
                f"/v1/{path}", json={**body, "stream": True, "max_tokens": 3, "stream_options": options}
            )
        *chunks, _ = events(answer.text)
        assert [c["usage"]["completion_tokens"] for c in chunks] == [1, 2, 3, 3]


def test_an_empty_answer_is_an_answer(serve: Serve) -> None:
    server = serve(FakeAsyncLLM(""))
    with server.client() as client:
        (chunk, done) = events(client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text)
        assert chunk["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert chunk["choices"][0]["finish_reason"] == "stop"
        whole = client.post("/v1/chat/completions", json=CHAT).json()
    assert whole["choices"][0]["message"]["content"] == ""
    assert done == "[DONE]"


def test_silence_is_broken_by_comments_that_clients_skip(serve: Serve) -> None:
    server = serve(FakeAsyncLLM("ok", first_delay_s=0.3), ping_s=0.05)
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    comments = [e for e in events(answer.text) if e == ": ping"]
    assert 2 <= len(comments) <= 6
    assert answer.text.startswith(": ping\n\n")
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("llm", "status", "code", "text"),
    [
        ({"die_after": 2}, 503, "engine_died", "killed by signal 9"),
        ({"fail_after": 2}, 500, "request_failed", "NaN"),
    ],
)
def test_a_failure_on_the_way_is_an_event_and_the_end(
    serve: Serve, llm: dict[str, int], status: int, code: str, text: str
) -> None:
    server = serve(FakeAsyncLLM(**llm))
    with server.client() as client:
        streamed = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        whole = client.post("/v1/chat/completions", json=CHAT)
    *chunks, last = events(streamed.text)
    assert streamed.status_code == 200
    assert len(chunks) == 2
    assert last["error"]["code"] == code
    assert text in last["error"]["message"]
    assert whole.status_code == status
    assert whole.json()["error"]["code"] == code
    assert server.llm.running == {}


def test_one_of_several_prompts_that_fails_ends_the_others(serve: Serve) -> None:
    server = serve(FakeAsyncLLM(fail_after=1))
    with server.client() as client:
        answer = client.post("/v1/completions", json={"prompt": ["a", "b", "c"]})
    assert answer.status_code == 500
    assert server.llm.running == {}


def test_a_queue_that_fills_up_half_way_takes_none_of_several_prompts(serve: Serve) -> None:
    server = serve(FakeAsyncLLM(queue_limit=2))
    with server.client() as client:
        answer = client.post("/v1/completions", json={"prompt": ["a", "b", "c"]})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert server.llm.running == {}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 300})]
)
def test_a_client_that_leaves_gives_its_blocks_back(
    serve: Serve, eventually: Eventually, path: str, body: dict[str, Any], stream: bool
) -> None:
    server = serve(FakeAsyncLLM(LONG, delay_s=0.01))
    connection = raw(server, {**body, "stream": stream}, path)
    eventually(lambda: server.llm.num_generated > 2)
    assert server.llm.running
    connection.close()
    eventually(lambda: not server.llm.running, timeout_s=1.0)
    assert all(request.is_closed for request in server.llm.seen)
    eventually(lambda: server.service.metrics.in_flight == 0)
    assert server.llm.num_generated < 400


def test_a_client_that_leaves_before_the_first_token_is_noticed_too(serve: Serve, eventually: Eventually) -> None:
    server = serve(FakeAsyncLLM(LONG, first_delay_s=30))
    for stream in (True, False):
        connection = raw(server, {**CHAT, "stream": stream})
        eventually(lambda: bool(server.llm.running))
        connection.close()
        eventually(lambda: not server.llm.running, timeout_s=1.0)


def test_an_embedding_that_nobody_waits_for_is_cancelled(serve: Serve, eventually: Eventually) -> None:
    server = serve(FakeAsyncLLM(delay_s=30))
    connection = raw(server, {"input": ["a"] * 40}, "/v1/embeddings")
    eventually(lambda: server.service.metrics.in_flight == 1)
    connection.close()
    eventually(lambda: server.service.metrics.in_flight == 0, timeout_s=1.0)


def test_a_connection_serves_one_request_after_the_other(fake: RunningServer) -> None:
    with fake.client(limits=httpx.Limits(max_connections=1)) as client:
        for _ in range(3):
            assert "[DONE]" in client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_request_that_takes_too_long_is_told_so(serve: Serve) -> None:
    server = serve(FakeAsyncLLM(), request_timeout_s=2.5)
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert server.llm.seen[-1].timeout_s == 2.5
