"""The whole way: HTTP, engine, demo model; as a client sees it, and as a process that is told to stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from demo_server import DemoServer
from server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoServer]:
    server = DemoServer()
    server.start()
    yield server
    server.stop()
    server.join()


@pytest.fixture(scope="module")
def client(demo: DemoServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_demo_model_answers_streamed_or_not(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=QUESTION)
    assert whole.choices[0].message.content == "Paris."
    assert whole.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(model="demo", messages=QUESTION, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Paris."


def test_a_repeated_prompt_is_found_in_the_cache_but_not_by_another_tenant(
    client: openai.OpenAI, demo: DemoServer
) -> None:
    text = "Once upon a time there was a runtime that ran on whatever hardware was present. " * 4

    def cached(salt: str) -> int:
        answer = client.completions.create(
            model="demo", prompt=text, max_tokens=1, temperature=0, extra_body={"cache_salt": salt}
        )
        return answer.usage.prompt_tokens_details.cached_tokens

    assert cached("a") == 0
    assert cached("a") > 0
    assert cached("b") == 0
    with demo.client() as plain:
        plain.post("/reset_prefix_cache")
    assert cached("a") == 0


def test_logprobs_of_the_model_come_in_both_shapes(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model="demo", messages=QUESTION, logprobs=True, top_logprobs=3, temperature=0)
    for position in chat.choices[0].logprobs.content:
        assert position.logprob <= 0
        assert len(position.top_logprobs) == 3
        assert position.top_logprobs[0].logprob == position.logprob  # greedy
    text = b"".join(bytes(p.bytes) for p in chat.choices[0].logprobs.content)
    assert text.startswith(b"Paris.")
    plain = client.completions.create(model="demo", prompt="The", max_tokens=3, logprobs=2, temperature=0)
    assert len(plain.choices[0].logprobs.tokens) == 3


def test_seeds_samples_stops_and_biases_reach_the_model(client: openai.OpenAI) -> None:
    ask = client.completions.create
    hot = {"model": "demo", "prompt": "The", "max_tokens": 8, "temperature": 2.0}
    assert ask(**hot, seed=3).choices[0].text == ask(**hot, seed=3).choices[0].text
    several = ask(**hot, n=4, seed=3)
    assert len({choice.text for choice in several.choices}) > 1
    assert several.usage.completion_tokens <= 32
    stopped = client.chat.completions.create(model="demo", messages=QUESTION, stop=["is."], temperature=0)
    assert stopped.choices[0].message.content == "Par"
    assert stopped.choices[0].finish_reason == "stop"
    with_bias = client.chat.completions.create(
        model="demo", messages=QUESTION, logit_bias={"65": 100}, max_tokens=2, temperature=0
    )
    assert with_bias.choices[0].message.content != "Paris."


def test_embeddings_have_length_one(client: openai.OpenAI) -> None:
    for extra in ({}, {"pooling": "mean"}):
        answer = client.embeddings.create(model="demo", input=["Paris", "France"], extra_body=extra)
        for item in answer.data:
            assert sum(x * x for x in item.embedding) == pytest.approx(1, abs=1e-4)


def test_many_clients_at_once_get_the_same_answer(demo: DemoServer) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
            ask = client.chat.completions.create
            answers = await asyncio.gather(*(ask(model="demo", messages=QUESTION) for _ in range(12)))
            return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(main()) == ["Paris."] * 12


def test_a_client_that_leaves_gives_its_blocks_back(demo: DemoServer, eventually: Callable[..., None]) -> None:
    def free() -> int:
        return demo.llm.stats().num_free_blocks

    body = {"messages": QUESTION, "stream": True, "ignore_eos": True, "n": 4}
    with demo.client() as client, client.stream("POST", CHAT, json=body) as answer:
        lines = answer.iter_lines()
        for _ in range(8):
            next(lines)
        assert free() < demo.llm.stats().num_blocks
    eventually(lambda: free() == demo.llm.stats().num_blocks and demo.llm.stats().num_running == 0)
    assert demo.llm.stats().requests_finished["aborted"] >= 4


def test_too_long_a_prompt_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"prompt has \d+ tokens, context is 512"):
        client.completions.create(model="demo", prompt="word " * 600)


# --- as a process


def test_a_process_says_one_ready_line_drains_at_sigterm_and_exits_with_0() -> None:
    with ServerProcess("--served-model-name", "paris", RUNTIME_API_KEY="secret") as server:
        assert sum("ready: " in line for line in server.lines) == 1
        assert "model paris · context 512 · " in server.lines[-1]
        assert " 0 KV blocks" not in server.lines[-1]
        headers = {"x-api-key": "secret"}
        answers: list[httpx.Response] = []
        with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
            assert client.get("/v1/models", headers={"x-api-key": "wrong"}).status_code == 401
            body = {"messages": QUESTION, "ignore_eos": True, "max_tokens": 200}
            asking = threading.Thread(target=lambda: answers.append(client.post(CHAT, json=body)))
            asking.start()
            with httpx.Client(base_url=server.url, headers=headers) as other:
                while 'runtime_num_requests_running{model_name="paris"} 1' not in other.get("/metrics").text:
                    time.sleep(0.01)
                server.process.send_signal(signal.SIGTERM)
                asking.join(30)
        assert answers[0].status_code == 200
        assert answers[0].json()["usage"]["completion_tokens"] == 200
        assert server.process.wait(20) == 0
        assert server.process.stdout.read() == ""


@pytest.mark.slow
def test_a_second_signal_leaves_at_once() -> None:
    with ServerProcess("--max-num-seqs", "2") as server:
        body = {"messages": QUESTION, "ignore_eos": True, "stream": True}
        with httpx.Client(base_url=server.url) as client, client.stream("POST", CHAT, json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            server.hears("a second signal leaves at once")
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.TransportError):
                list(lines)
        assert server.process.wait(5) == 128 + signal.SIGTERM


def test_serving_without_its_packages_is_an_error_with_the_remedy() -> None:
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("uvicorn", "msgspec") else find(name, *rest)
from runtime.cli import main
sys.exit(main(["serve"]))
"""
    path = os.pathsep.join([str(ROOT / "core"), str(ROOT / "backends/cpu"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: serving needs uvicorn, msgspec, which are not installed",
        "       pip install 'hal-runtime[serve]'",
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port", "99999"], "port = 99999"),
        (["--host", "203.0.113.7"], "cannot listen on 203.0.113.7"),
        (["--ssl-certfile", "/nowhere.pem"], "'/nowhere.pem' cannot be used"),
        (["--api-key-file", os.devnull], "holds no API key"),
        (["-m", "/nowhere.gguf"], "/nowhere.gguf"),
    ],
)
def test_wrong_settings_are_told_at_once(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from runtime.cli import main

    assert main(["serve", "--port", "0", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_what_the_page_needs_is_served_without_a_key(demo: DemoServer) -> None:
    with demo.client() as client:
        answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "<script" in answer.text


def test_an_answer_has_the_form_that_was_asked_for(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model="demo", messages=QUESTION, response_format=form, max_tokens=60)
    assert json.loads(answer.choices[0].message.content)["a"] in ("x", "y")
    one_of = {"guided_choice": ["Rome", "Oslo"]}
    answer = client.chat.completions.create(model="demo", messages=QUESTION, extra_body=one_of)
    assert answer.choices[0].message.content in ("Rome", "Oslo")


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "(unclosed"},
        {"grammar": "root ::= undefined"},
        {"guided_grammar": "start: undefined"},
        {"guided_json": {"type": "nothing"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nowhere"}}}},
    ],
)
def test_a_form_that_cannot_be_enforced_is_a_400(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="demo", messages=QUESTION, extra_body=fields)


def test_a_request_that_takes_longer_than_the_limit_is_a_504(demo: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr(demo.service, "settings", replace(demo.settings, request_timeout_s=0.05))
    body = {"messages": QUESTION, "ignore_eos": True}
    with demo.client() as client:
        answer = client.post(CHAT, json=body)
        streamed = client.post(CHAT, json={**body, "stream": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timed_out")
    assert '"code":"timed_out"' in streamed.text
    assert "[DONE]" not in streamed.text
