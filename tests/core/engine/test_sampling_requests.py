"""What a request may ask of its sampling, beside requests that ask for something else, on the demo model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from device_in_use import blocks_for

from runtime import LLM, Completion, SamplingParams
from runtime.engine.constraints import bad_word_ids, banned_next
from runtime.errors import ExecutionFailed, InvalidArgument, NumericFault
from runtime.tokenizer import Tokenizer

pytestmark = pytest.mark.timeout(400)  # without native kernels the references take a minute for some of them

FREE = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
TEXT = "Once upon a time there was a runtime that ran on whatever hardware was present. It was small and it was quick."


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_num_seqs=4, max_num_batched_tokens=48, max_model_len=256, kv_format="f32") as model:
        yield model


def one(result: Completion | list[Completion]) -> Completion:
    assert isinstance(result, Completion)
    return result


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


# --- stop strings


def test_the_stop_string_stays_where_that_was_asked_for(llm: LLM) -> None:
    whole = one(llm.generate(TEXT, FREE)).text
    stop = whole[5:9]
    at = whole.index(stop)
    without = one(llm.generate(TEXT, FREE.with_(stop=stop)))
    including = one(llm.generate(TEXT, FREE.with_(stop=stop, include_stop_str_in_output=True)))
    assert (without.text, including.text) == (whole[:at], whole[: at + len(stop)])
    assert without.token_ids == including.token_ids
    assert without.stop_reason == including.stop_reason == stop


# --- tokens that are ruled out


def test_only_allowed_tokens_come_and_neighbours_are_untouched(llm: LLM) -> None:
    allowed = [40, 41, 300, 301]
    params = [
        FREE.with_(temperature=2.0, seed=1, max_tokens=40, allowed_token_ids=allowed),
        FREE,
        FREE.with_(allowed_token_ids=allowed, logprobs=2),
    ]
    hot, free, greedy = llm.generate([TEXT] * 3, params)
    assert set(hot.token_ids) <= set(allowed)
    assert free.token_ids == one(llm.generate(TEXT, FREE)).token_ids
    logits = llm.logits(greedy.prompt_token_ids)[-1]
    assert greedy.token_ids[0] == max(allowed, key=lambda t: logits[t])
    assert greedy.logprobs is not None
    top = np.argsort(-logits)[:2].tolist()
    assert [t.token_id for t in greedy.logprobs[0].top] == top  # the model's own, before anything is ruled out


def test_a_bad_word_never_comes(llm: LLM) -> None:
    free = one(llm.generate(TEXT, FREE.with_(max_tokens=40)))
    words = sorted({w.strip(".,") for w in free.text.split() if len(w) > 3})
    assert words
    held = one(llm.generate(TEXT, FREE.with_(max_tokens=40, bad_words=words)))
    banned = bad_word_ids(words, llm.tokenizer)
    assert not any(_holds(held.token_ids, ids) for ids in banned)
    assert any(_holds(free.token_ids, ids) for ids in banned)


def _holds(token_ids: Sequence[int], part: Sequence[int]) -> bool:
    return any(tuple(token_ids[i : i + len(part)]) == tuple(part) for i in range(len(token_ids)))


class _Words(Tokenizer):
    """Ids from a list."""

    def __init__(self, ids: dict[str, list[int]]) -> None:
        self._ids = ids

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        assert not add_special
        return self._ids[text]


def test_a_bad_word_is_taken_after_a_space_too_where_that_is_another_word() -> None:
    ids = {"cat": [1, 2], " cat": [3, 2], "dog": [4], " dog": [9, 4], "a": [5], " a": [5]}
    assert bad_word_ids(["cat", " dog", "a"], _Words(ids)) == ((1, 2), (3, 2), (4,), (5,))


def test_the_last_token_of_a_word_is_banned_behind_the_others_of_the_output() -> None:
    words = [(1, 2, 3), (4,), (2, 9)]
    assert list(banned_next(words, [])) == [4]
    assert list(banned_next(words, [1, 2])) == [3, 4, 9]
    assert list(banned_next(words, [2, 1])) == [4]


def test_nothing_left_to_choose_fails_the_request_alone(llm: LLM) -> None:
    params = [FREE.with_(allowed_token_ids=[40], logit_bias={40: float("-inf")}), FREE]
    failed, good = llm.generate([TEXT] * 2, params)
    assert failed.finish_reason == "error"
    assert "leave no token to choose" in str(failed.error)
    assert len(good.token_ids) == 8
    with pytest.raises(NumericFault):
        llm.generate(TEXT, params[0])


# --- log-probabilities of prompts


@pytest.mark.parametrize("length", [1, 2, 9, 110])
def test_a_prompt_is_scored_as_its_logits_say(llm: LLM, length: int) -> None:
    prompt = (llm.tokenizer.encode(TEXT) * 3)[:length]
    params = [FREE.with_(max_tokens=0, prompt_logprobs=3), FREE, FREE.with_(prompt_logprobs=0, logprobs=1)]
    scored, free, both = llm.generate([prompt, TEXT, prompt], params)
    assert (scored.text, scored.token_ids, scored.finish_reason) == ("", (), "length")
    assert free.prompt_logprobs is None
    assert free.token_ids == one(llm.generate(TEXT, FREE)).token_ids
    assert both.token_ids == one(llm.generate(prompt, FREE)).token_ids
    assert both.logprobs is not None
    expected = log_softmax(llm.logits(prompt))
    for completion, count in ((scored, 3), (both, 0)):
        positions = completion.prompt_logprobs
        assert positions is not None
        assert len(positions) == length
        assert positions[0] is None
        for i, position in enumerate(positions[1:]):
            assert position is not None
            assert position.chosen.token_id == prompt[i + 1]
            assert position.chosen.logprob == pytest.approx(expected[i, prompt[i + 1]], abs=1e-4)
            assert position.chosen.rank == 1 + int((expected[i] > expected[i, prompt[i + 1]]).sum())
            assert [t.token_id for t in position.top] == np.argsort(-expected[i], kind="stable")[:count].tolist()


def test_scoring_ignores_what_is_cached_and_samples_share_the_scores(llm: LLM) -> None:
    llm.generate(TEXT * 4, FREE)
    cached = one(llm.generate(TEXT * 4, FREE))
    assert cached.num_cached_tokens > 0
    scored = one(llm.generate(TEXT * 4, FREE.with_(prompt_logprobs=0, n=3, temperature=1.0, seed=5)))
    assert scored.num_cached_tokens == 0
    assert scored.prompt_logprobs is not None
    assert len(scored.prompt_logprobs) == len(scored.prompt_token_ids)
    assert [other.prompt_logprobs == scored.prompt_logprobs for other in scored.others] == [True, True]
    again = one(llm.generate(TEXT * 4, FREE.with_(max_tokens=0, prompt_logprobs=0)))
    assert again.prompt_logprobs == scored.prompt_logprobs


def test_scores_come_with_the_first_output_of_a_stream(llm: LLM) -> None:
    first, *others = llm.stream(TEXT, FREE.with_(prompt_logprobs=1))
    assert first.prompt_logprobs is not None
    assert len(first.prompt_logprobs) == len(llm.tokenizer.encode(TEXT))
    assert all(output.prompt_logprobs is None for output in others)


def test_prompts_are_scored_the_same_when_blocks_run_out() -> None:
    prompts = [TEXT[i:] for i in range(6)]
    params = FREE.with_(prompt_logprobs=1, max_tokens=90)
    with (
        LLM(max_num_seqs=6, max_model_len=256, num_kv_blocks=blocks_for(320)) as small,
        LLM(max_num_seqs=6, max_model_len=256) as all,
    ):
        tight, wide = small.generate(prompts, params), all.generate(prompts, params)
        assert small.loaded.engine.stats().preemptions > 0
    assert isinstance(tight, list)
    assert isinstance(wide, list)
    assert [c.prompt_logprobs for c in tight] == [c.prompt_logprobs for c in wide]
    assert [c.token_ids for c in tight] == [c.token_ids for c in wide]


# --- functions


def test_a_function_changes_its_own_rows_alone_and_one_that_raises_fails_its_request_alone(llm: LLM) -> None:
    seen = []

    def only_even(prompt: Sequence[int], output: Sequence[int], logits: np.ndarray) -> None:
        seen.append((len(prompt), len(output)))
        logits[1::2] = -np.inf

    def broken(prompt: Sequence[int], output: Sequence[int], logits: np.ndarray) -> None:
        raise KeyError("no such thing")

    def nan(prompt: Sequence[int], output: Sequence[int], logits: np.ndarray) -> np.ndarray:
        return np.full_like(logits, np.nan)

    def short(prompt: Sequence[int], output: Sequence[int], logits: np.ndarray) -> np.ndarray:
        return logits[:5]

    functions: list[Any] = [only_even, broken, nan]
    params = [FREE.with_(logits_processors=f, logprobs=1) for f in functions]
    even, failed, not_a_number, free = llm.generate([TEXT] * 4, [*params, FREE])
    assert even.token_ids
    assert all(t % 2 == 0 for t in even.token_ids)
    assert seen == [(len(even.prompt_token_ids), n) for n in range(8)]
    assert free.token_ids == one(llm.generate(TEXT, FREE)).token_ids
    assert failed.error == "logits processor 'broken' failed: KeyError: 'no such thing'"
    assert not_a_number.error == "logits processor 'nan' made logits that hold NaN or +infinity"
    with pytest.raises(ExecutionFailed, match=r"it returned the shape \(5,\), the logits have \(\d+,\)"):
        llm.generate(TEXT, FREE.with_(logits_processors=short))


def test_a_name_that_nobody_has_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidArgument, match=r"there is no logits processor 'nobody'"):
        llm.generate(TEXT, FREE.with_(logits_processors=("nobody",)))


# --- many settings in one batch


def test_64_rows_with_64_settings_are_64_single_runs() -> None:
    prompts, params = [], []
    for i in range(64):
        prompts.append(TEXT[: 20 + i])
        params.append(
            SamplingParams(
                temperature=(0.0, 0.7, 1.0, 1.6)[i % 4],
                top_k=(0, 40, 5, -1)[i // 4 % 4],
                top_p=(1.0, 0.95, 0.5)[i % 3],
                min_p=(0.0, 0.0, 0.05)[i // 3 % 3],
                typical_p=(1.0, 0.9)[i // 7 % 2],
                repetition_penalty=(1.0, 1.2)[i // 5 % 2],
                presence_penalty=(0.0, 0.5)[i // 6 % 2],
                frequency_penalty=(0.0, 0.3)[i // 9 % 2],
                logit_bias={i: 3.0} if i % 5 == 0 else {},
                bad_words=["time"] if i % 11 == 0 else (),
                allowed_token_ids=range(i, 400) if i % 13 == 0 else None,
                logprobs=(None, None, 2)[i % 3],
                prompt_logprobs=1 if i % 17 == 0 else None,
                min_tokens=i % 3,
                max_tokens=6 + i % 5,
                seed=i,
            )
        )
    with LLM(max_num_seqs=64, max_model_len=128) as llm:
        together = llm.generate(prompts, params)
        alone = [one(llm.generate(prompt, setting)) for prompt, setting in zip(prompts, params)]
    assert isinstance(together, list)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.logprobs for c in together] == [c.logprobs for c in alone]
    assert [c.prompt_logprobs for c in together] == [c.prompt_logprobs for c in alone]
