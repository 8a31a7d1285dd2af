"""Every row of the table of errors in docs/server.md, as the official client raises it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_async_llm import FakeAsyncLLM
from running_server import RunningServer

import runtime.server.app
from runtime.errors import EngineDied, OutOfMemory, QueueFull, Unsupported
from runtime.server.failures import from_fault

Serve = Callable[..., RunningServer]
ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


def ask(path: str = CHAT, **body: Any) -> Callable[[openai.OpenAI, RunningServer], Any]:
    return lambda client, _: client.post(path, body=body or {"messages": HI}, cast_to=object)


def without_key(client: openai.OpenAI, _: RunningServer) -> Any:
    return client.with_options(api_key="wrong").models.list()


def as_text(client: openai.OpenAI, _: RunningServer) -> Any:
    return client.post(CHAT, content="hi", options={"headers": {"content-type": "text/plain"}}, cast_to=object)


def no_json(client: openai.OpenAI, _: RunningServer) -> Any:
    return client.post(CHAT, content="{", options={"headers": {"content-type": "application/json"}}, cast_to=object)


def while_draining(client: openai.OpenAI, server: RunningServer) -> Any:
    server.service.is_draining = True
    return ask()(client, server)


embedding = ask("/v1/embeddings", input="a")


class Stopping(FakeAsyncLLM):
    """Withdraws what it takes."""

    def generate(self, *args: Any, **more: Any) -> Any:
        request = super().generate(*args, **more)
        request.is_aborted = True
        return request


class WithoutVectors(FakeAsyncLLM):
    async def embed(self, *_: Any) -> Any:
        raise Unsupported("this engine computes no embeddings")


class WithoutMemory(FakeAsyncLLM):
    async def embed(self, *_: Any) -> Any:
        raise OutOfMemory("no blocks")


class Late(FakeAsyncLLM):
    """Takes longer than it may."""

    def generate(self, prompt_token_ids: Any, params: Any = None, **more: Any) -> Any:
        request = super().generate(prompt_token_ids, params, **more)

        async def outputs() -> Any:
            yield request._output("", (), 0, False, finish_reason="timeout")

        request._outputs = outputs()
        return request


class Broken(FakeAsyncLLM):
    """Has a bug."""

    def generate(self, *_: Any, **__: Any) -> Any:
        raise ZeroDivisionError


ROWS: list[tuple[int, str, type[openai.APIStatusError], Any, Any, dict[str, Any]]] = [
    (400, "invalid_type", openai.BadRequestError, ask(messages=3), None, {}),
    (400, "invalid_json", openai.BadRequestError, no_json, None, {}),
    (400, "invalid_argument", openai.BadRequestError, ask(messages=HI, temperature=-1), None, {}),
    (400, "unsupported", openai.BadRequestError, embedding, WithoutVectors, {}),
    (400, "unsupported_parameter", openai.BadRequestError, ask("/v1/completions", prompt="a", best_of=2), None, {}),
    (400, "context_length_exceeded", openai.BadRequestError, ask("/v1/completions", prompt="a" * 600), None, {}),
    (401, "invalid_api_key", openai.AuthenticationError, without_key, None, {"api_keys": ("right",)}),
    (404, "model_not_found", openai.NotFoundError, ask(messages=HI, model="other"), None, {}),
    (404, "route_not_found", openai.NotFoundError, ask("/v2/chat"), None, {}),
    (405, "method_not_allowed", openai.APIStatusError, ask("/v1/models"), None, {}),
    (408, "body_timeout", openai.APIStatusError, None, None, {}),
    (413, "body_too_large", openai.APIStatusError, ask(), None, {"max_body_bytes": 8}),
    (415, "not_json", openai.APIStatusError, as_text, None, {}),
    (429, "queue_full", openai.RateLimitError, ask(), lambda: FakeAsyncLLM(queue_limit=0), {}),
    (500, "request_failed", openai.InternalServerError, ask(), lambda: FakeAsyncLLM(fail_after=1), {}),
    (500, "internal", openai.InternalServerError, ask(), Broken, {}),
    (503, "engine_died", openai.InternalServerError, ask(), lambda: FakeAsyncLLM(die_after=1), {}),
    (503, "draining", openai.InternalServerError, while_draining, None, {}),
    (503, "aborted", openai.InternalServerError, ask(), Stopping, {}),
    (503, "out_of_memory", openai.InternalServerError, embedding, WithoutMemory, {}),
    (504, "timed_out", openai.InternalServerError, ask(), Late, {}),
]


@pytest.mark.parametrize(
    ("status", "code", "kind", "call", "llm", "settings"),
    [row for row in ROWS if row[3]],
    ids=[f"{row[0]}-{row[1]}" for row in ROWS if row[3]],
)
def test_the_official_client_raises_the_class_of_its_status(
    serve: Serve,
    status: int,
    code: str,
    kind: type[openai.APIStatusError],
    call: Any,
    llm: Any,
    settings: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve(llm() if llm else None, **settings)
    with (
        httpx.Client(verify=False) as http,
        openai.OpenAI(base_url=server.url, api_key="right", max_retries=0, http_client=http) as client,
        pytest.raises(kind) as raised,
    ):
        call(client, server)
    error = raised.value
    assert type(error) is kind
    assert (error.status_code, error.code) == (status, code)
    assert error.body["message"]  # type: ignore[index, call-overload]
    assert ("retry-after" in error.response.headers) == (status in (429, 503))
    if code == "context_length_exceeded":
        assert (error.body["n_prompt_tokens"], error.body["n_ctx"]) == (601, 512)  # type: ignore[index, call-overload]
    with server.client() as plain:  # the error was that request's alone
        assert plain.get("/live").status_code == 200


def test_the_table_in_the_documentation_has_these_rows_and_no_others() -> None:
    table = (ROOT / "docs/server.md").read_text("utf-8").partition("## Errors")[2].partition("\n## ")[0]
    documented = set()
    for statuses, codes in re.findall(r"^\| ([\d, ]+) \| (.*?) \|", table, re.MULTILINE):
        names = re.findall(r"`(\w+)`", codes)
        each = [int(s) for s in statuses.split(",")]
        documented |= {(s, n) for s, n in zip(each * (len(names) if len(each) == 1 else 1), names)}
    assert documented == {(status, code) for status, code, *_ in ROWS}


def test_a_body_that_does_not_come_is_a_408(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.server.app, "BODY_TIMEOUT_S", 0.05)
    server = serve()

    async def main() -> bytes:
        reader, writer = await asyncio.open_connection(*server.listener.getsockname()[:2])
        head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
        writer.write(head.encode())
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), 5)
        writer.close()
        return answer

    head, _, body = asyncio.run(main()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == "body_timeout"


def test_faults_of_the_engine_have_their_status() -> None:
    full = from_fault(QueueFull("full", retry_after_s=2.5))
    assert (full.status, full.headers) == (429, {"retry-after": "3"})
    died = from_fault(EngineDied("died", retry_after_s=0.1))
    assert (died.status, died.headers) == (503, {"retry-after": "1"})
    memory = from_fault(OutOfMemory("no blocks"))
    assert (memory.status, memory.body.code, memory.headers) == (503, "out_of_memory", {"retry-after": "1"})
