"""The official client drives the server: sync and async, streaming and not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import openai
import pytest
from fake_async_llm import FakeAsyncLLM
from running_server import RunningServer

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def client(fake: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fake.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat_is_answered_with_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HI)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello, world."
    assert choice.finish_reason == "stop"
    assert answer.usage.prompt_tokens == len("[user]hi[assistant]")
    assert answer.usage.completion_tokens == 13
    assert answer.usage.total_tokens == 32
    assert answer.usage.prompt_tokens_details.cached_tokens == 16
    assert answer.id.startswith("chatcmpl-")


def test_a_streamed_chat_adds_up_to_the_answer_and_ends_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="fake", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello, world."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(c.usage is None for c in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == 13
    assert last.usage.prompt_tokens_details.cached_tokens == 16


def test_several_answers_have_their_indices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HI, n=3, max_tokens=5)
    assert [(c.index, c.message.content, c.finish_reason) for c in answer.choices] == [
        (i, "Hello", "length") for i in range(3)
    ]
    assert answer.usage.completion_tokens == 15
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(model="fake", messages=HI, n=3, max_tokens=5, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["Hello"] * 3


def test_chat_logprobs_have_tokens_bytes_and_alternatives(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake", messages=HI, logprobs=True, top_logprobs=2, max_completion_tokens=2
    )
    first, second = answer.choices[0].logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("H", -0.5, [72])
    assert [(t.token, t.logprob) for t in first.top_logprobs] == [("H", -0.5), ("A", -9999.0)]
    assert second.bytes == [101]
    chunks = list(client.chat.completions.create(model="fake", messages=HI, logprobs=True, max_tokens=2, stream=True))
    assert [c.choices[0].logprobs.content[0].bytes for c in chunks] == [[72], [101]]


def test_a_completion_continues_text_token_ids_and_lists_of_either(client: openai.OpenAI) -> None:
    complete = client.completions.create
    assert complete(model="fake", prompt="x", max_tokens=4).choices[0].text == "Hell"
    assert complete(model="fake", prompt=[120, 121], max_tokens=4).usage.prompt_tokens == 2
    several = complete(model="fake", prompt=["a", "b"], n=2, max_tokens=1)
    assert [(c.index, c.text) for c in several.choices] == [(i, "H") for i in range(4)]
    assert complete(model="fake", prompt=[[120], [121]], max_tokens=1, echo=True).choices[1].text == "yH"
    assert len(complete(model="fake", prompt="x").choices[0].text) == 13


def test_streamed_completions_of_several_prompts_keep_apart(client: openai.OpenAI) -> None:
    texts = ["", ""]
    usage = None
    for chunk in client.completions.create(
        model="fake", prompt=["ab", "c"], echo=True, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["abHello, world.", "cHello, world."]
    assert usage.prompt_tokens == 5  # with a BOS each
    assert usage.completion_tokens == 26


def test_completion_logprobs_are_parallel_lists(client: openai.OpenAI) -> None:
    logprobs = client.completions.create(model="fake", prompt="x", max_tokens=2, logprobs=2).choices[0].logprobs
    assert logprobs.tokens == ["H", "e"]
    assert logprobs.token_logprobs == [-0.5, -0.5]
    assert logprobs.text_offset == [0, 1]
    assert logprobs.top_logprobs[0] == {"H": -0.5, "A": -9999.0}
    assert logprobs.bytes == [[72], [101]]


def test_embeddings_come_as_numbers_and_as_base64(client: openai.OpenAI) -> None:
    wanted = [ord("b") / 256, 0.5, -0.25]
    as_base64 = client.embeddings.create(model="fake", input=["a", "ab"])  # the client's own choice
    as_numbers = client.embeddings.create(model="fake", input="ab", encoding_format="float")
    assert as_base64.data[1].embedding == wanted
    assert as_numbers.data[0].embedding == wanted
    assert as_base64.usage.prompt_tokens == 5


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["fake", "alias"]
    assert client.models.retrieve("alias").max_model_len == 512
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_the_client_raises_the_right_classes(client: openai.OpenAI, serve: Callable[..., RunningServer]) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="fake", messages=HI, temperature=-1)
    assert (wrong.value.param, wrong.value.code) == ("temperature", "invalid_argument")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=HI)
    busy = serve(FakeAsyncLLM(queue_limit=0), api_keys=("secret",))
    with openai.OpenAI(base_url=f"{busy.url}/v1", api_key="secret", max_retries=0) as other:
        with pytest.raises(openai.RateLimitError) as full:
            other.chat.completions.create(model="fake", messages=HI)
        assert full.value.response.headers["retry-after"] == "3"
    stranger = openai.OpenAI(base_url=f"{busy.url}/v1", api_key="guess", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_a_dying_engine_is_an_error_in_a_stream_and_before_it(serve: Callable[..., RunningServer]) -> None:
    at_once, later = serve(FakeAsyncLLM(die_after=0)), serve(FakeAsyncLLM(die_after=3))
    with openai.OpenAI(base_url=f"{at_once.url}/v1", api_key="none", max_retries=0) as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as died:
                client.chat.completions.create(model="fake", messages=HI, stream=stream)
            assert died.value.status_code == 503
            assert "killed by signal 9" in died.value.message
    with openai.OpenAI(base_url=f"{later.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model="fake", messages=HI, stream=True)
        texts = []
        with pytest.raises(openai.APIError, match="the engine died: killed by signal 9"):
            texts += [chunk.choices[0].delta.content for chunk in stream]


def test_the_async_client_streams_many_answers_at_once(fake: RunningServer) -> None:
    async def ask(client: openai.AsyncOpenAI, i: int) -> str:
        if i % 2:
            answer = await client.chat.completions.create(model="fake", messages=HI)
            return answer.choices[0].message.content
        stream = await client.chat.completions.create(model="fake", messages=HI, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, i) for i in range(16)))

    assert asyncio.run(main()) == ["Hello, world."] * 16


def test_the_async_client_embeds_and_completes(fake: RunningServer) -> None:
    async def main() -> tuple[str, int]:
        async with openai.AsyncOpenAI(base_url=f"{fake.url}/v1", api_key="none", max_retries=0) as client:
            done = await client.completions.create(model="fake", prompt="x", max_tokens=5)
            vectors = await client.embeddings.create(model="fake", input=["a"] * 40)
            return done.choices[0].text, len(vectors.data)

    assert asyncio.run(main()) == ("Hello", 40)
