"""Log-probabilities of prompts in OpenAI's and vLLM's shapes, and stop strings in streams, over the demo model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from running_server import RunningServer

from runtime import LLM, SamplingParams
from runtime.engine.async_llm import AsyncLLM
from runtime.engine.config import EngineConfig

PROMPT = "The quick brown fox, naïve and 日本, jumps over the lazy dog."
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class DemoServer(RunningServer):
    """A server over the demo model, whose engine runs in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        llm = self.loop.run_until_complete(AsyncLLM.start(EngineConfig(max_num_seqs=4, max_model_len=256)))
        super().__init__(llm, model_names=("demo",))

    def _run(self) -> None:
        try:
            self.loop.run_until_complete(self.server.serve(sockets=[self.listener]))
            self.loop.run_until_complete(self.llm.close())
        finally:
            self.loop.close()


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoServer]:
    server = DemoServer()
    server.start()
    yield server
    server.stop()
    server.join()


def complete(demo: DemoServer, **fields: Any) -> Any:
    with demo.client() as client:
        answer = client.post("/v1/completions", json={"prompt": PROMPT, "temperature": 0, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(demo: DemoServer, **fields: Any) -> list[Any]:
    with demo.client() as client:
        answer = client.post("/v1/completions", json={"prompt": PROMPT, "temperature": 0, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    *events, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(event)["choices"][0] for event in events]


def test_a_prompt_is_scored_in_openais_shape_without_generating(demo: DemoServer) -> None:
    answer = complete(demo, max_tokens=0, echo=True, logprobs=2)
    (choice,) = answer["choices"]
    assert choice["text"] == PROMPT
    assert choice["finish_reason"] == "length"
    logprobs = choice["logprobs"]
    token_ids = demo.llm.tokenizer.encode(PROMPT)
    assert {len(v) for v in logprobs.values()} == {len(token_ids)}
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["prompt_tokens"] == len(token_ids)
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    assert all(-50 < value <= 0 for value in logprobs["token_logprobs"][1:])
    assert all(2 <= len(top) <= 3 for top in logprobs["top_logprobs"][1:])
    with LLM() as llm:
        (alone,) = [llm.generate(PROMPT, SamplingParams(max_tokens=0, prompt_logprobs=0))]
    assert [p and p.chosen.logprob for p in alone.prompt_logprobs] == pytest.approx(logprobs["token_logprobs"])


def test_offsets_say_where_each_token_begins_and_bytes_are_the_text(demo: DemoServer) -> None:
    choice = complete(demo, max_tokens=4, echo=True, logprobs=0, ignore_eos=True, skip_special_tokens=False)["choices"][
        0
    ]
    logprobs = choice["logprobs"]
    assert logprobs["top_logprobs"] is None
    num_hidden = 1 if demo.llm.tokenizer.adds_bos else 0
    text = b"".join(bytes(b) for b in logprobs["bytes"][num_hidden:]).decode()
    assert text.startswith(PROMPT)
    assert choice["text"].startswith(PROMPT)
    for token, offset in list(zip(logprobs["tokens"], logprobs["text_offset"]))[num_hidden:]:
        if "\ufffd" not in token:  # a part of a character has no text of its own
            assert choice["text"][offset : offset + len(token)] == token
    assert logprobs["text_offset"][:num_hidden] == [0] * num_hidden
    assert len(logprobs["tokens"]) == len(demo.llm.tokenizer.encode(PROMPT)) + 4


def test_an_echo_in_a_stream_has_the_same_log_probabilities(demo: DemoServer) -> None:
    fields = {"max_tokens": 5, "echo": True, "logprobs": 1}
    whole = complete(demo, **fields)["choices"][0]
    events = streamed(demo, **fields)
    assert "".join(e["text"] for e in events) == whole["text"]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert [x for e in events if e["logprobs"] for x in e["logprobs"][name]] == whole["logprobs"][name]


def test_several_prompts_and_samples_are_each_scored(demo: DemoServer) -> None:
    prompts = ["One two three", "Four"]
    answer = complete(demo, prompt=prompts, n=2, max_tokens=1, echo=True, logprobs=0, temperature=1.0)
    lengths = [len(demo.llm.tokenizer.encode(p)) + 1 for p in prompts]
    assert [len(c["logprobs"]["tokens"]) for c in answer["choices"]] == [lengths[0]] * 2 + [lengths[1]] * 2
    assert [c["logprobs"]["token_logprobs"][0] for c in answer["choices"]] == [None] * 4


def test_an_echo_alone_needs_no_tokens(demo: DemoServer) -> None:
    choice = complete(demo, max_tokens=0, echo=True)["choices"][0]
    assert (choice["text"], choice["logprobs"]) == (PROMPT, None)


def test_prompt_logprobs_have_vllms_shape(demo: DemoServer) -> None:
    token_ids = demo.llm.tokenizer.encode(PROMPT)
    choice = complete(demo, max_tokens=1, prompt_logprobs=1)["choices"][0]
    assert choice["logprobs"] is None
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    assert len(rest) == len(token_ids) - 1
    for token_id, position in zip(token_ids[1:], rest):
        assert next(iter(position)) == str(token_id)
        assert set(position[str(token_id)]) == {"logprob", "rank", "decoded_token"}
        assert 1 in [entry["rank"] for entry in position.values()]
        assert len(position) == (1 if position[str(token_id)]["rank"] == 1 else 2)
    with demo.client() as client:
        body = {"messages": QUESTION, "prompt_logprobs": 0, "return_token_ids": True, "max_tokens": 3}
        chat = client.post("/v1/chat/completions", json=body).json()
    assert [p and list(p) for p in chat["prompt_logprobs"]] == [None, *([str(t)] for t in chat["prompt_token_ids"][1:])]


def test_a_stop_string_over_three_tokens_is_never_seen_in_a_stream(demo: DemoServer) -> None:
    whole = complete(demo, max_tokens=24, logprobs=0, ignore_eos=True)["choices"][0]
    text, tokens = whole["text"], whole["logprobs"]["tokens"]
    at = next(i for i in range(1, len(tokens) - 3) if all(t.isascii() and t for t in tokens[i : i + 3]))
    stop = tokens[at][-1] + tokens[at + 1] + tokens[at + 2][0]
    end = text.index(stop)
    events = streamed(demo, max_tokens=24, ignore_eos=True, stop=[stop])
    shown = [e["text"] for e in events]
    assert "".join(shown) == text[:end]
    assert (events[-1]["finish_reason"], events[-1]["stop_reason"]) == ("stop", stop)
    seen = ""
    for piece in shown:
        seen += piece
        assert text[:end].startswith(seen)
    included = streamed(demo, max_tokens=24, ignore_eos=True, stop=[stop], include_stop_str_in_output=True)
    assert "".join(e["text"] for e in included) == text[: end + len(stop)]
