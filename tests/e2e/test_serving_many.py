"""Many requests at a time on the packaged demo model: the same tokens and logits, however they are served."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from device_in_use import block_size, blocks_for

from runtime import LLM, Completion, SamplingParams
from runtime.errors import InvalidArgument
from runtime.models.demo import demo_model_path

pytestmark = pytest.mark.timeout(400)  # without native kernels the references take a minute for some of them

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


def prompts(count: int, longest: int = 150) -> list[list[int]]:
    """Token ids; every other prompt begins like the first."""
    rng = random.Random(3)
    shared = [rng.randrange(20, 1500) for _ in range(longest)]
    return [
        (shared[: rng.randint(70, longest)] if i % 2 else []) + [rng.randrange(20, 1500) for _ in range(1 + i % 40)]
        for i in range(count)
    ]


class Recorder:
    """Keeps the row of logits from which every token was chosen."""

    def __init__(self, llm: LLM) -> None:
        self.rows: dict[tuple[tuple[int, ...], int], np.ndarray] = {}
        sampler = llm.loaded.engine.sampler
        sample = sampler.sample

        def recorded(logits: np.ndarray, requests: Sequence[Any]) -> Any:
            for row, request in zip(logits, requests):
                self.rows[tuple(request.prompt_token_ids), request.num_output_tokens] = row.copy()
            return sample(logits, requests)

        sampler.sample = recorded  # type: ignore[method-assign]


def served(
    batch: list[list[int]], params: SamplingParams = GREEDY, **config: Any
) -> tuple[list[tuple[int, ...]], Recorder, Any]:
    with LLM(**config) as llm:
        recorder = Recorder(llm)
        completions = llm.generate(batch, params)
        assert isinstance(completions, list)
        stats = llm.loaded.engine.stats()
        assert stats.num_free_blocks == stats.num_blocks
    assert all(c.finish_reason == "length" for c in completions)
    return [c.token_ids for c in completions], recorder, stats


@pytest.fixture(scope="module")
def alone() -> tuple[list[tuple[int, ...]], Recorder]:
    """One request at a time, whole prompts, nothing cached."""
    tokens, recorder, stats = served(prompts(32), max_num_seqs=1, enable_prefix_caching=False)
    assert stats.prefix_cache_hits == 0
    return tokens, recorder


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_num_seqs": 4}, ()),
        ({"max_num_seqs": 32}, ("prefix_cache_hits",)),
        ({"max_num_seqs": 32, "max_num_batched_tokens": 37}, ("prefix_cache_hits",)),
        ({"max_num_seqs": 32, "max_num_batched_tokens": 64, "enable_prefix_caching": False}, ()),
        ({"max_num_seqs": 5, "scheduling_policy": "fair", "long_prefill_token_threshold": 5}, ()),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_tokens_and_logits_are_the_same_bit_for_bit(
    alone: tuple[list[tuple[int, ...]], Recorder], config: dict[str, Any], expected: tuple[str, ...]
) -> None:
    tokens, recorder, stats = served(prompts(32), **config)
    assert tokens == alone[0]
    for key, row in alone[1].rows.items():
        np.testing.assert_array_equal(recorder.rows[key], row)
    for counter in expected:
        assert getattr(stats, counter) > 0


def test_preempted_requests_go_on_as_if_nothing_had_happened() -> None:
    params, batch = GREEDY.with_(max_tokens=140), prompts(6, longest=80)
    undisturbed, recorder, stats = served(batch, params, max_num_seqs=6)
    assert stats.preemptions == 0
    for config in ({}, {"swap_bytes": 1 << 26}, {"enable_prefix_caching": False}):
        small = {"max_num_seqs": 6, "max_model_len": 256, "num_kv_blocks": blocks_for(832)}
        tokens, again, stats = served(batch, params, **small, **config)
        assert stats.preemptions > 0
        assert tokens == undisturbed
        for key, row in recorder.rows.items():
            np.testing.assert_array_equal(again.rows[key], row)


@pytest.fixture(scope="module")
def llm() -> Any:
    with LLM(max_num_seqs=8) as model:
        yield model


def test_samples_of_one_prompt_share_its_computation(llm: LLM) -> None:
    prompt = prompts(1)[0] * 90
    before = llm.loaded.engine.stats()
    params = SamplingParams(n=8, max_tokens=6, seed=11, ignore_eos=True)
    first = llm.generate(prompt, params)
    assert isinstance(first, Completion)
    after = llm.loaded.engine.stats()
    assert after.prompt_tokens - before.prompt_tokens == len(prompt) + 7
    assert [c.num_cached_tokens for c in first.others] == [len(prompt) - 1] * 7
    samples = [first, *first.others]
    assert [c.seed for c in samples] == list(range(11, 19))
    single = [llm.generate(prompt, params.with_(n=1, seed=seed)) for seed in range(11, 19)]
    assert [c.token_ids for c in samples] == [c.token_ids for c in single if isinstance(c, Completion)]
    assert len({c.token_ids for c in samples}) > 1


def test_the_second_identical_request_finds_all_full_blocks(llm: LLM) -> None:
    prompt = prompts(4)[3] + [5] * 130
    first, second = (llm.generate(prompt, GREEDY) for _ in range(2))
    assert isinstance(first, Completion)
    assert isinstance(second, Completion)
    assert second.num_cached_tokens == (len(prompt) - 1) // 64 * 64 > 0
    assert second.token_ids == first.token_ids
    llm.loaded.engine.reset_prefix_cache()
    third = llm.generate(prompt, GREEDY)
    assert isinstance(third, Completion)
    assert (third.num_cached_tokens, third.token_ids) == (0, first.token_ids)


def test_a_request_that_cannot_be_served_fails_alone(llm: LLM) -> None:
    nothing_left = dict.fromkeys(range(llm.vocab_size), -np.inf)
    params = [GREEDY, GREEDY.with_(logit_bias=nothing_left), GREEDY, GREEDY]
    batch: list[Any] = ["The capital of France", "It", [5] * 2000, "The capital of France"]
    answers = llm.generate(batch, params)
    assert isinstance(answers, list)
    assert [a.finish_reason for a in answers] == ["length", "error", "error", "length"]
    assert answers[0].text == answers[3].text == llm.generate("The capital of France", GREEDY).text  # type: ignore[union-attr]
    assert "leave no token to choose" in (answers[1].error or "")
    assert "prompt has 2000 tokens, context is 1024" in (answers[2].error or "")
    with pytest.raises(InvalidArgument, match="3 prompts, 2 sampling_params"):
        llm.generate(["a", "b", "c"], [GREEDY, GREEDY])


def test_the_pool_is_no_larger_than_the_sequences_need_and_is_printed() -> None:
    with LLM(max_num_seqs=1, max_model_len=100) as small:
        pool = small.loaded.engine.scheduler.pool
        assert pool.num_blocks == -(-100 // pool.block_size)
        assert f"KV {small.loaded.kv_format}, {pool.num_blocks} blocks of {pool.block_size}" in small.status[-1]
    too_few = blocks_for(100) - 1
    message = f"{too_few} KV blocks of {block_size()} tokens hold less than the context of 100 tokens"
    with pytest.raises(InvalidArgument, match=message):
        LLM(max_model_len=100, num_kv_blocks=too_few)


def test_embeddings_have_length_one_and_do_not_depend_on_the_chunks(llm: LLM) -> None:
    text = prompts(4)[3]
    for pooling in ("mean", "last"):
        vector = llm.embed(text, pooling)  # type: ignore[arg-type]
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
        with LLM(max_num_batched_tokens=16) as chunked:
            np.testing.assert_allclose(chunked.embed(text, pooling), vector, atol=1e-6)  # type: ignore[arg-type]
    assert llm.embed(["hello", "world"]).shape == (2, llm.loaded.spec.hidden_size)
    with pytest.raises(InvalidArgument, match="pooling"):
        llm.embed(text, "max")  # type: ignore[arg-type]


@pytest.mark.oracle
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_the_hidden_states_that_transformers_computes(llm: LLM, pooling: Any) -> None:
    import torch
    from transformers import AutoModel

    path = demo_model_path()
    model = AutoModel.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    token_ids = llm.tokenizer.encode("The capital of France is Paris, and the capital of Italy is Rome.")
    with torch.no_grad():
        hidden = model(torch.tensor([token_ids])).last_hidden_state[0].numpy()
    wanted = hidden.mean(axis=0) if pooling == "mean" else hidden[-1]
    vector = llm.embed(token_ids, pooling)
    assert float(vector @ wanted / np.linalg.norm(wanted)) > 0.999
