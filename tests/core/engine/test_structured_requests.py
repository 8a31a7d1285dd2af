"""Requests with a grammar beside requests without one, in one engine."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from runtime import LLM, SamplingParams
from runtime.engine.async_llm import AsyncLLM
from runtime.engine.config import EngineConfig
from runtime.engine.structured import StructuredOutput
from runtime.errors import ExecutionFailed, InvalidArgument

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_answers_match_their_grammars_and_neighbours_are_untouched() -> None:
    with LLM(max_num_seqs=4) as llm:
        prompt = llm.tokenizer.encode_chat(llm.render_chat(QUESTION))
        free = llm.chat(QUESTION, SamplingParams(temperature=0))
        regex = SamplingParams(temperature=0, structured=StructuredOutput("regex", "[A-Z]{2}[0-9]{3}"))
        choice = SamplingParams(temperature=1.5, seed=3, structured=StructuredOutput("choice", '["Rome", "Oslo"]'))
        schema = json.dumps({"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]})
        objects = SamplingParams(temperature=0, structured=StructuredOutput("json_schema", schema), max_tokens=200)
        params = [regex, SamplingParams(temperature=0), choice, objects.with_(min_tokens=2)]
        first, second, third, fourth = llm.generate([prompt] * 4, params)
    assert re.fullmatch("[A-Z]{2}[0-9]{3}", first.text)
    assert first.finish_reason == "stop"
    assert second.token_ids == free.token_ids
    assert third.text in ("Rome", "Oslo")
    assert fourth.finish_reason != "stop" or isinstance(json.loads(fourth.text)["x"], bool)


def test_a_complete_output_ends_even_where_the_end_token_is_ignored() -> None:
    with LLM() as llm:
        params = SamplingParams(temperature=0, ignore_eos=True, structured=StructuredOutput("regex", "ab?c"))
        answer = llm.generate("x", params)
    assert not isinstance(answer, list)
    assert answer.text in ("abc", "ac")
    assert answer.finish_reason == "stop"


def test_log_probabilities_are_the_models_own() -> None:
    with LLM() as llm:
        prompt = llm.tokenizer.encode_chat(llm.render_chat(QUESTION))
        free = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1, logprobs=3))
        held = SamplingParams(temperature=0, max_tokens=1, logprobs=3, structured=StructuredOutput("regex", "[0-9]"))
        bound = llm.generate(prompt, held)
    assert not isinstance(free, list)
    assert not isinstance(bound, list)
    assert free.logprobs is not None
    assert bound.logprobs is not None
    assert bound.logprobs[0].top == free.logprobs[0].top
    assert bound.text.isdigit()
    assert bound.logprobs[0].chosen.rank > 3


def test_a_grammar_that_cannot_be_followed_further_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> None:
        raise ExecutionFailed("the grammar is too large")

    with LLM(max_num_seqs=2) as llm:
        monkeypatch.setattr("runtime.engine.structured.Matcher.mask", broken)
        held = SamplingParams(temperature=0, max_tokens=4, structured=StructuredOutput("regex", "a*"))
        failed, good = llm.generate(["x", "x"], [held, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)])
    assert failed.finish_reason == "error"
    assert len(good.token_ids) == 4


@pytest.mark.parametrize("process", [False, True])
def test_a_server_refuses_what_it_cannot_enforce_and_serves_what_it_can(process: bool) -> None:
    async def ask() -> str:
        llm = await AsyncLLM.start(EngineConfig(), process=process)
        try:
            with pytest.raises(InvalidArgument, match="uniqueItems"):
                await llm.check_structured(StructuredOutput("json_schema", '{"type": "array", "uniqueItems": true}'))
            structured = StructuredOutput("choice", '["red", "green"]')
            await llm.check_structured(structured)
            params = SamplingParams(temperature=0, structured=structured)
            return "".join([o.text async for o in llm.generate(llm.tokenizer.encode("x"), params)])
        finally:
            await llm.close()

    assert asyncio.run(ask()) in ("red", "green")
