"""Beam search: the beams, order and scores of transformers, and what users see of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import save_model

from runtime import LLM, BeamSearchParams, SamplingParams
from runtime.errors import InvalidArgument

VOCAB_SIZE = 131
EOS = [90, 2, 7]
PAD = 130


@pytest.fixture(scope="module")
def llm() -> Any:
    with LLM(max_num_seqs=8) as model:
        yield model


def test_beams_are_at_least_as_probable_as_the_greedy_answer_and_sum_up_its_logprobs(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=4, max_tokens=12, ignore_eos=True)
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
    for prompt in ("The capital of France", "Tell me a story"):
        output = llm.beam_search(prompt, params)
        assert output.prompt == prompt
        best, *others = output.sequences
        assert best.cumulative_logprob >= (llm.generate(prompt, greedy).outputs[0].cumulative_logprob or 0) - 1e-4
        assert [s.score for s in (best, *others)] == sorted((s.score for s in (best, *others)), reverse=True)
        assert len({s.token_ids for s in (best, *others)}) == 4
        logits = llm.logits([*output.prompt_token_ids, *best.token_ids]).astype(np.float64)
        rows = logits[len(output.prompt_token_ids) - 1 : -1]
        logprobs = (
            rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) - rows.max(1, keepdims=True)
        )
        total = sum(row[token_id] for row, token_id in zip(logprobs, best.token_ids))
        assert best.cumulative_logprob == pytest.approx(total, abs=1e-3)
        assert best.score == pytest.approx(best.cumulative_logprob / 12)


def test_a_list_gives_what_each_prompt_gives_alone(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=10)
    prompts: list[Any] = ["What is the capital of France?", [20, 30, 40], {"prompt": "Once"}]
    batch = llm.beam_search(prompts, params)
    assert [o.sequences for o in batch] == [llm.beam_search(p, params).sequences for p in prompts]
    stats = llm.loaded.engine.stats()
    assert stats.num_free_blocks == stats.num_blocks


def test_an_answer_ends_where_the_model_ends_it(llm: LLM) -> None:
    prompt = llm.render_chat([{"role": "user", "content": "What is the capital of France?"}])
    output = llm.beam_search(prompt, BeamSearchParams(beam_width=2, max_tokens=20))
    assert (output.sequences[0].text, output.sequences[0].finish_reason) == ("Paris.", "stop")
    assert output.sequences[0].token_ids[-1] in llm.tokenizer.eos_token_ids


def test_the_context_limits_beams_and_logprobs_limit_their_number(llm: LLM) -> None:
    output = llm.beam_search([5] * 1020, BeamSearchParams(beam_width=2, max_tokens=20, ignore_eos=True))
    assert [(len(s.token_ids), s.finish_reason) for s in output.sequences] == [(4, "length")] * 2
    with pytest.raises(InvalidArgument, match="prompt has 2000 tokens"):
        llm.beam_search([5] * 2000, BeamSearchParams(beam_width=2, max_tokens=2))
    with pytest.raises(InvalidArgument, match="beam_width = 21: with 0 end-of-generation tokens at most 20 beams"):
        llm.beam_search("x", BeamSearchParams(beam_width=21, max_tokens=2, ignore_eos=True))


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    vocabulary = {f"w{i}": i for i in range(VOCAB_SIZE)}
    Tokenizer(WordLevel(vocabulary, unk_token="w0")).save(str(folder / "tokenizer.json"))


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("eos", [EOS[:1], EOS], ids=["one-end", "three-ends"])
def test_beams_order_and_scores_are_those_of_transformers(tmp_path: Path, name: str, eos: list[int]) -> None:
    import torch

    model = save_model(name, tmp_path)
    save_tokenizer(tmp_path)
    model.generation_config.eos_token_id = eos
    model.generation_config.save_pretrained(tmp_path)
    rng = np.random.default_rng(5)
    prompts = [[int(i) for i in rng.integers(10, VOCAB_SIZE - 50, n)] for n in (1, 3, 9, 17, 30)]
    reasons = []
    with LLM(tmp_path, backend="cpu", kv_format="f32", max_num_seqs=16) as llm:
        assert llm.tokenizer.eos_token_ids == frozenset(eos)
        for width, max_tokens, length_penalty in ((4, 1, 1.0), (4, 12, 1.0), (4, 30, 0.0), (4, 25, 2.0), (2, 20, -0.5)):
            settings = BeamSearchParams(beam_width=width, max_tokens=max_tokens, length_penalty=length_penalty)
            for prompt, output in zip(prompts, llm.beam_search(prompts, settings)):
                with torch.no_grad():
                    expected = model.generate(
                        torch.tensor([prompt]),
                        num_beams=width,
                        num_return_sequences=width,
                        do_sample=False,
                        max_new_tokens=max_tokens,
                        length_penalty=length_penalty,
                        pad_token_id=PAD,
                        return_dict_in_generate=True,
                        output_scores=True,
                    )
                rows = [row[len(prompt) :].tolist() for row in expected.sequences]
                found = [list(s.token_ids) for s in output.sequences]
                longest = max(map(len, found))
                assert [ids + [PAD] * (longest - len(ids)) for ids in found] == rows
                scores = [s.score for s in output.sequences]
                np.testing.assert_allclose(scores, expected.sequences_scores.numpy(), atol=1e-4)
                assert all(math.isfinite(s.cumulative_logprob) for s in output.sequences)
                reasons += [s.finish_reason for s in output.sequences]
    assert reasons.count("stop") > 5
    assert reasons.count("length") > 10
