"""Prompt tokens per step while others decode: a simulated device with known costs."""

from __future__ import annotations

import pytest

from runtime.engine.pace import REFRESH_STEPS, Budget, Pace

DECODE_S, PROMPT_TOKEN_S = 0.040, 0.0035
MEASURED_MS = [0, 29, 33, 39, 44, 45, 47, 54, 56, 60, 63, 67, 71, 54, 55, 59, 63, 69, 74, 77, 80, 82, 85, 88, 90]
"""Of steps of 0, 1, 2, ... tokens on one processor: filling up a tile costs nothing, beginning one does."""


def step_s(num_decoding: int, num_prompt_tokens: int) -> float:
    return DECODE_S + PROMPT_TOKEN_S * (num_prompt_tokens + num_decoding)


def measured_step_s(num_decoding: int, num_prompt_tokens: int) -> float:
    count = num_decoding + num_prompt_tokens
    return 0.001 * MEASURED_MS[count] if count < len(MEASURED_MS) else 0.0036 * count


def measured(num_decoding: int) -> Pace:
    pace = Pace()
    assert pace.limit(0, 1) is None
    pace.record(0, 512, step_s(0, 512))
    assert pace.limit(num_decoding, 1) == 0
    pace.record(num_decoding, 0, step_s(num_decoding, 0))
    for _ in range(10):
        count = pace.limit(num_decoding, 1)
        assert count
        pace.record(num_decoding, count, step_s(num_decoding, count))
    return pace


@pytest.mark.parametrize("cost", [step_s, measured_step_s])
@pytest.mark.parametrize("num_decoding", [1, 2, 4, 8, 16])
def test_a_long_prompt_at_most_doubles_the_time_of_a_step_and_uses_what_it_may(cost, num_decoding) -> None:
    pace = Pace()
    alone, steps, taken = cost(num_decoding, 0), [], 0
    most = next(n for n in range(300) if cost(num_decoding, n + 1) > 2.0 * alone)
    while taken < 4096:
        count = pace.limit(num_decoding, 1)
        assert count is not None
        steps.append(cost(num_decoding, count))
        pace.record(num_decoding, count, steps[-1])
        taken += count
    assert sorted(steps)[int(0.9 * len(steps))] <= 2.0 * alone
    assert len(steps) < 2.0 * 4096 / most


def test_a_step_of_one_prompt_token_is_learned_from() -> None:
    pace = Pace()
    pace.record(4, 0, 0.035)
    for _ in range(5):
        pace.record(4, 8, 0.900)
    assert pace.limit(4, 1) == 1
    for _ in range(10):
        pace.record(4, pace.limit(4, 1) or 0, 0.040)
    assert (pace.limit(4, 1) or 0) > 5


def test_a_batch_of_another_size_is_measured_first() -> None:
    pace = measured(4)
    assert pace.limit(5, 1)
    assert pace.limit(8, 1) == 0


def test_a_crowd_of_prompts_gets_a_larger_share() -> None:
    few, crowd = measured(4).limit(4, 4), measured(4).limit(4, 28)
    assert few is not None
    assert crowd is not None
    assert 4 * few < crowd < 8 * few


def test_decoding_alone_is_measured_again_now_and_then() -> None:
    pace = measured(4)
    limits = []
    for _ in range(2 * REFRESH_STEPS):
        limits.append(pace.limit(4, 1))
        count = limits[-1] or 0
        pace.record(4, count, step_s(4, count))
    assert limits.count(0) == 2


def test_short_prompts_come_in_larger_chunks() -> None:
    budget = measured(4).budget(500, 4, 1)
    long_tokens = budget.for_long
    assert 10 < long_tokens < 16
    assert budget.take(4096, is_short=False) == long_tokens
    assert budget.take(4096, is_short=False) == 0
    assert budget.take(200, is_short=True) == 64 - long_tokens
    assert not budget.is_open
    assert Pace(threshold=7).budget(500, 4, 1) == Budget(500, 7, 7)
    assert Pace().budget(500, 0, 3) == Budget(500, 500, 500)


def test_a_fixed_threshold_and_none_at_all() -> None:
    assert Pace(threshold=7).limit(3, 1) == 7
    assert Pace(threshold=7).limit(0, 1) is None
    assert Pace(threshold=0).limit(3, 1) is None
