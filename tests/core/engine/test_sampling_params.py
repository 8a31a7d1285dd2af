"""Settings of a request: ranges, errors with values, reproducible random numbers."""

from __future__ import annotations

import math

import pytest

from runtime import SamplingParams
from runtime.engine.random import uniform
from runtime.errors import InvalidArgument


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature = -0.1: it must be 0 (greedy) or positive"),
        ({"temperature": math.nan}, "temperature = nan: it must be 0 (greedy) or positive"),
        ({"top_p": 0}, "top_p = 0: it must be in (0, 1]"),
        ({"top_p": 1.5}, "top_p = 1.5: it must be in (0, 1]"),
        ({"top_k": -2}, "top_k = -2: it must be positive, or 0 or -1 for all"),
        ({"min_p": 2}, "min_p = 2: it must be in [0, 1]"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0: it must be positive"),
        ({"max_tokens": 0}, "max_tokens = 0: it must be None or an integer from 1"),
        ({"logprobs": 21}, "logprobs = 21: at most 20 alternatives can be reported"),
        ({"stop": ["a", ""]}, "stop = ('a', ''): every stop string must be non-empty text"),
        ({"seed": -1}, "seed = -1: it must be an integer in 0 .. 2**64 - 1"),
        ({"logit_bias": {3: math.inf}}, "logit_bias holds NaN or +infinity"),
        ({"prompt_logprobs": -1}, "prompt_logprobs = -1: it must be None or an integer from 0"),
        ({"prompt_logprobs": 21}, "prompt_logprobs = 21: at most 20 alternatives can be reported"),
        ({"prompt_logprobs": 0, "max_tokens": -1}, "max_tokens = -1: it must be None or an integer from 0"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({"allowed_token_ids": ["a"]}, "allowed_token_ids = ('a',): it must hold token ids"),
        ({"bad_words": ["a", " "]}, "bad_words = ('a', ' '): every word must be text that is not blank"),
        ({"logits_processors": [3]}, "logits_processors = (3,): each must be a name or a function"),
        ({"logits_processor_args": {"a": {}}}, "arguments for 'a', which logits_processors does not name"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_rule(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        SamplingParams(**settings)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_one_stop_string_may_be_given_bare() -> None:
    assert SamplingParams(stop="\n").stop == ("\n",)


def test_the_same_seed_and_position_give_the_same_number() -> None:
    assert uniform(7, 0) == uniform(7, 0)
    assert uniform(7, 0) != uniform(7, 1)
    assert uniform(7, 0) != uniform(8, 0)


def test_random_numbers_are_those_of_philox_with_the_seed_as_key() -> None:
    import numpy as np

    for seed, index in [(123, 9), (0, 0), (7, 1), (2**63 + 11, 1000), (2**64 - 1, 5)]:
        raw = int(np.random.Philox(key=seed, counter=index).random_raw())
        assert uniform(seed, index) == (raw >> 40) / 2**24
        generator = np.random.Generator(np.random.Philox(key=seed, counter=index))
        assert uniform(seed, index) == pytest.approx(generator.random(), abs=2.0**-24)


def test_random_numbers_are_spread_evenly() -> None:
    values = [uniform(seed, index) for seed in range(50) for index in range(40)]
    assert all(0 <= v < 1 for v in values)
    counts = [sum(b / 10 <= v < (b + 1) / 10 for v in values) for b in range(10)]
    chi_square = sum((c - 200) ** 2 / 200 for c in counts)
    assert chi_square < 27.9  # 0.1 % quantile with 9 degrees of freedom
