"""The Python interface on the packaged demo model."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from runtime import LLM, Completion, SamplingParams, load_tokenizer
from runtime.errors import InvalidArgument, NumericFault, OutOfMemory, Unsupported
from runtime.models.demo import demo_model_path

GREEDY = SamplingParams(temperature=0.0, max_tokens=48)
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a story about a cat."}]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM() as model:
        yield model


def one(result: Completion | list[Completion]) -> Completion:
    assert isinstance(result, Completion)
    return result


def test_a_question_is_answered(llm: LLM) -> None:
    answer = llm.chat(FRANCE, GREEDY)
    assert answer.text == "Paris."
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] in llm.tokenizer.eos_token_ids
    assert answer.prompt_token_ids == tuple(llm.tokenizer.encode_chat(llm.render_chat(FRANCE)))


def test_the_demo_model_is_greedy_unless_told_otherwise(llm: LLM) -> None:
    assert llm.default_sampling_params == SamplingParams(temperature=0.0)
    assert llm.chat(FRANCE).text == "Paris."


def test_a_conversation_is_remembered(llm: LLM) -> None:
    messages = [
        *FRANCE,
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "What is the capital of Italy?"},
    ]
    assert llm.chat(messages, GREEDY).text == "Rome."


def test_streamed_pieces_make_the_whole_answer(llm: LLM) -> None:
    outputs = list(llm.stream(STORY, GREEDY))
    whole = llm.chat(STORY, GREEDY)
    assert "".join(o.text for o in outputs) == whole.text
    assert tuple(t for o in outputs for t in o.token_ids) == whole.token_ids
    assert [o.finish_reason for o in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason == whole.finish_reason


def test_leaving_a_stream_frees_its_blocks(llm: LLM) -> None:
    pool = llm.loaded.engine.scheduler.pool
    before = pool.num_free
    stream = llm.stream(STORY, GREEDY)
    next(stream)
    assert pool.num_free < before
    stream.close()
    assert pool.num_free == before
    assert not llm.loaded.engine.has_work


def test_a_stop_string_never_shows_even_in_part(llm: LLM) -> None:
    whole = llm.chat(STORY, GREEDY).text
    stop = whole[10:15]
    outputs = list(llm.stream(STORY, GREEDY.with_(stop=[stop])))
    assert "".join(o.text for o in outputs) == whole[: whole.index(stop)]
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].stop_reason == stop


def test_a_batch_gives_what_each_prompt_gives_alone(llm: LLM) -> None:
    prompts: list[str] = ["The capital", "Count from 3", "a", "What colour is the sky?", "Repeat: red fox"]
    for params in (GREEDY, SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=24)):
        batch = llm.generate(prompts, params)
        assert isinstance(batch, list)
        assert [c.token_ids for c in batch] == [one(llm.generate(p, params)).token_ids for p in prompts]


def test_chunked_prompts_give_the_same_tokens() -> None:
    prompt = "Tell me a story about a dog. " * 6
    with LLM(max_num_batched_tokens=16) as chunked, LLM(max_num_batched_tokens=512) as straight:
        assert len(straight.tokenizer.encode(prompt)) > 32
        assert one(chunked.generate(prompt, GREEDY)).token_ids == one(straight.generate(prompt, GREEDY)).token_ids


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=32, ignore_eos=True)
    first = one(llm.generate("Once", params))
    assert one(llm.generate("Once", params)).token_ids == first.token_ids
    assert one(llm.generate("Once", params.with_(seed=4))).token_ids != first.token_ids
    drawn = one(llm.generate("Once", params.with_(seed=None)))
    assert one(llm.generate("Once", params.with_(seed=drawn.seed))).token_ids == drawn.token_ids


def test_logprobs_are_those_of_the_logits(llm: LLM) -> None:
    prompt = llm.tokenizer.encode_chat(llm.render_chat(FRANCE))
    answer = one(llm.generate(prompt, GREEDY.with_(logprobs=3)))
    logits = llm.logits([*prompt, *answer.token_ids])
    assert logits.dtype == np.float32
    assert logits.shape == (len(prompt) + len(answer.token_ids), llm.vocab_size)
    assert answer.logprobs is not None
    for i, position in enumerate(answer.logprobs):
        row = logits[len(prompt) - 1 + i].astype(np.float64)
        expected = row - row.max() - math.log(np.exp(row - row.max()).sum())
        assert position.chosen.token_id == answer.token_ids[i]
        assert position.chosen.rank == 1
        assert [t.token_id for t in position.top] == list(np.argsort(-row, kind="stable")[:3])
        assert [t.logprob for t in position.top] == pytest.approx(sorted(expected, reverse=True)[:3], abs=1e-4)


def test_max_tokens_ends_with_length(llm: LLM) -> None:
    answer = llm.chat(STORY, GREEDY.with_(max_tokens=5))
    assert (len(answer.token_ids), answer.finish_reason) == (5, "length")


def test_min_tokens_and_ignore_eos_hold_the_end_back(llm: LLM) -> None:
    eos = llm.tokenizer.eos_token_ids
    long = llm.chat(FRANCE, GREEDY.with_(min_tokens=12, max_tokens=20))
    assert not eos & set(long.token_ids[:12])
    endless = llm.chat(FRANCE, GREEDY.with_(ignore_eos=True, max_tokens=20))
    assert len(endless.token_ids) == 20


def test_a_banned_token_never_appears(llm: LLM) -> None:
    first = llm.chat(FRANCE, GREEDY).token_ids[0]
    banned = llm.chat(FRANCE, GREEDY.with_(logit_bias={first: -math.inf}))
    assert first not in banned.token_ids
    forced = llm.chat(FRANCE, GREEDY.with_(logit_bias={65: 1000.0}, max_tokens=4))
    assert forced.token_ids == (65, 65, 65, 65)


def test_banning_everything_is_an_error_and_the_engine_lives_on(llm: LLM) -> None:
    everything = dict.fromkeys(range(llm.vocab_size), -math.inf)
    with pytest.raises(NumericFault, match="leave no token to choose"):
        llm.chat(FRANCE, GREEDY.with_(logit_bias=everything))
    assert llm.chat(FRANCE, GREEDY).text == "Paris."


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(llm: LLM) -> None:
    with pytest.raises(InvalidArgument, match=r"prompt has 2000 tokens, context is 1024"):
        llm.generate([5] * 2000, GREEDY)
    assert not llm.loaded.engine.has_work


def test_a_generation_ends_where_the_context_ends() -> None:
    with LLM(max_model_len=32) as small:
        answer = one(small.generate([5] * 20, SamplingParams(temperature=0, ignore_eos=True)))
    assert (len(answer.token_ids), answer.finish_reason) == (12, "length")


def test_token_ids_outside_the_vocabulary_are_refused(llm: LLM) -> None:
    with pytest.raises(InvalidArgument, match=r"the prompt holds token id 1000000; the vocabulary has ids 0 \.\. "):
        llm.generate([5, 1000000], GREEDY)
    with pytest.raises(InvalidArgument, match="logit_bias holds token id 99999"):
        llm.generate([5], GREEDY.with_(logit_bias={99999: 1.0}))
    with pytest.raises(InvalidArgument, match="the prompt has no tokens"):
        llm.stream([], GREEDY)


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="a context of 4096 tokens was asked for, the model was made for 1024"):
        LLM(max_model_len=4096)


def test_an_unknown_backend_or_kv_format_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="nosuch"):
        LLM(backend="nosuch")
    with pytest.raises(Unsupported, match="q2_k"):
        LLM(kv_format="q2_k")


@pytest.mark.parametrize("kv_format", ["f32", "f16", "bf16"])
def test_every_offered_kv_format_answers(kv_format: str) -> None:
    with LLM(kv_format=kv_format) as model:
        assert model.chat(FRANCE, GREEDY).text == "Paris."


def test_the_context_that_does_not_fit_is_an_error_with_figures() -> None:
    from runtime.engine.context import fit_context

    arguments = {"kv_bytes_per_token": 1000, "block_size": 16, "max_num_seqs": 4}
    fitted = fit_context(requested=None, model_limit=4096, free_bytes=1_000_000, **arguments)
    assert (fitted.max_model_len, fitted.limited_by) == (800, "memory; the model's limit is 4096")
    with pytest.raises(OutOfMemory, match=r"a context of 2048 tokens needs 0\.00 GB of KV cache.*at most 800 tokens"):
        fit_context(requested=2048, model_limit=4096, free_bytes=1_000_000, **arguments)


def test_the_tokenizer_is_there_without_the_model(llm: LLM) -> None:
    tokenizer = load_tokenizer(demo_model_path())
    assert tokenizer.encode("What is the capital?") == llm.tokenizer.encode("What is the capital?")
    assert tokenizer.decode(tokenizer.encode("Größe 🦊")) == "Größe 🦊"


def test_the_status_says_where_and_why(llm: LLM) -> None:
    line = llm.status[-1]
    assert line.startswith("backend cpu (")
    assert "threads (" in line
    assert "demo q8_0, context 1024 (the model's limit)" in line
