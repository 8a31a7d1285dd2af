"""Prompt tokens per step while others decode: a simulated device with known costs."""

from __future__ import annotations

from runtime.engine.pace import REFRESH_STEPS, Budget, Pace

DECODE_S, PROMPT_TOKEN_S = 0.040, 0.0035


def step_s(num_decoding: int, num_prompt_tokens: int) -> float:
    return DECODE_S + PROMPT_TOKEN_S * (num_prompt_tokens + num_decoding)


def measured(num_decoding: int) -> Pace:
    pace = Pace()
    assert pace.limit(0, 1) is None
    pace.record(0, 512, step_s(0, 512))
    assert pace.limit(num_decoding, 1) == 0
    pace.record(num_decoding, 0, step_s(num_decoding, 0))
    return pace


def test_a_long_prompt_at_most_doubles_the_time_of_a_step() -> None:
    pace = measured(4)
    steps, taken = [], 0
    while taken < 4096:
        count = pace.limit(4, 1)
        assert count is not None
        steps.append(step_s(4, count))
        pace.record(4, count, steps[-1])
        taken += count
    assert max(steps) <= 2.0 * step_s(4, 0)
    assert len(steps) < 4096 / 10


def test_a_crowd_of_prompts_gets_a_larger_share() -> None:
    few, crowd = measured(4).limit(4, 4), measured(4).limit(4, 28)
    assert few is not None
    assert crowd is not None
    assert 6 * few < crowd < 8 * few


def test_decoding_alone_is_measured_again_now_and_then() -> None:
    pace = measured(4)
    limits = []
    for _ in range(2 * REFRESH_STEPS):
        limits.append(pace.limit(4, 1))
        count = limits[-1] or 0
        pace.record(4, count, step_s(4, count))
    assert limits.count(0) == 1


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
