"""Programs in the shape of vLLM's basic examples, with `runtime` imported instead."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from runtime import LLM, SamplingParams
from runtime.models.demo import demo_model_path

PROMPTS = ["The capital of France is", "The sky is", "Count from 3", "Hello, my name is"]
CONVERSATION = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "What is the capital of Italy?"},
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(model=str(demo_model_path()), max_model_len=256, max_num_seqs=8, seed=7) as model:
        yield model


def test_basic(llm: LLM) -> None:
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=8)
    outputs = llm.generate(PROMPTS, sampling_params)
    assert [output.prompt for output in outputs] == PROMPTS
    for output in outputs:
        assert output.outputs[0].text == output.text
        assert output.finished
    assert len({output.request_id for output in outputs}) == 4


def test_generate_with_the_default_settings_changed(llm: LLM) -> None:
    sampling_params = llm.get_default_sampling_params()
    sampling_params.max_tokens = 4
    sampling_params.temperature = 0.5
    sampling_params.top_k = 5
    outputs = llm.generate(PROMPTS, sampling_params=sampling_params, use_tqdm=True)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [4] * 4
    sampling_params.max_tokens = 2
    assert llm.get_default_sampling_params() == SamplingParams(temperature=0.0)
    (output,) = llm.generate(PROMPTS[0], sampling_params)
    assert len(output.outputs[0].token_ids) == 2


def test_chat_with_one_conversation_and_with_many(llm: LLM) -> None:
    sampling_params = llm.get_default_sampling_params()
    outputs = llm.chat(CONVERSATION, sampling_params, use_tqdm=False)
    assert len(outputs) == len([CONVERSATION])
    for output in outputs:
        assert output.outputs[0].text == "Rome."
    conversations = [CONVERSATION, CONVERSATION[:1], CONVERSATION]
    batch = llm.chat(conversations, sampling_params, use_tqdm=True)
    assert [output.outputs[0].text for output in batch] == ["Rome.", "Paris.", "Rome."]
    template = "{{ messages[0].content }}"
    batch = llm.chat(conversations, sampling_params, use_tqdm=False, chat_template=template)
    assert [output.prompt for output in batch] == ["What is the capital of France?"] * 3


def test_embed(llm: LLM) -> None:
    outputs = llm.embed(PROMPTS)
    for prompt, embeds in zip(PROMPTS, outputs, strict=True):
        np.testing.assert_allclose(embeds, llm.embed(prompt), atol=1e-6)


def test_score(llm: LLM) -> None:
    scores = llm.score(PROMPTS[0], PROMPTS)
    vectors = llm.embed(PROMPTS)
    np.testing.assert_allclose(scores, vectors @ vectors[0], atol=1e-6)
    assert scores[0] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(llm.score(PROMPTS, PROMPTS), np.ones(4), atol=1e-6)


def test_logprobs_are_found_by_token_id(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=3, logprobs=2, n=2, ignore_eos=True)
    (output,) = llm.generate(PROMPTS[0], params)
    assert [sample.index for sample in output.outputs] == [0, 1]
    for sample in output.outputs:
        assert sample.logprobs is not None
        chosen = [position[token_id] for position, token_id in zip(sample.logprobs, sample.token_ids, strict=True)]
        assert sample.cumulative_logprob == pytest.approx(sum(token.logprob for token in chosen))
        assert all(token.decoded_token and token.rank >= 1 for token in chosen)
        assert all(2 <= len(position) <= 3 for position in sample.logprobs)
    (plain,) = llm.generate(PROMPTS[0], SamplingParams(max_tokens=1))
    assert (plain.outputs[0].logprobs, plain.outputs[0].cumulative_logprob) == (None, None)


def test_the_seed_of_an_llm_decides_what_requests_without_one_draw() -> None:
    params = SamplingParams(temperature=1.0, max_tokens=6)
    drawn = []
    for seed in (3, 3, 4):
        with LLM(seed=seed) as llm:
            drawn.append([output.token_ids for output in llm.generate(PROMPTS, params)])
    assert drawn[0] == drawn[1] != drawn[2]
