"""Native sampling takes the token that the reference takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from native_device import OneOp, assert_judged

from runtime_cpu.device import NativeDevice

RNG = np.random.default_rng(4)


def sample(logits: np.ndarray, **settings: Any) -> OneOp:
    rows = len(logits)
    inputs = {
        "logits": logits,
        "temperature": np.full(rows, 0.8, np.float32),
        "top_k": np.zeros(rows, np.int32),
        "top_p": np.ones(rows, np.float32),
        "min_p": np.zeros(rows, np.float32),
        "typical_p": np.ones(rows, np.float32),
        "uniform": RNG.random(rows).astype(np.float32),
    }
    return OneOp("sample", inputs | settings)


def choice(rows: int, *values: float) -> np.ndarray:
    return RNG.choice(values, rows).astype(np.float32)


def test_a_thousand_rows_with_all_filters_give_the_tokens_of_the_reference(devices: dict[str, NativeDevice]) -> None:
    rows = 1000
    logits = (RNG.standard_normal((rows, 997)) * 3).astype(np.float32)
    logits[::3] = np.round(logits[::3])  # equal logits
    logits[5], logits[6, 3], logits[7] = -np.inf, np.nan, 0
    logits[8, 1:] = -np.inf
    op = sample(
        logits,
        temperature=choice(rows, 0, 0.3, 0.8, 1.5),
        top_k=choice(rows, 0, 1, 5, 40, 2000).astype(np.int32),
        top_p=choice(rows, 1, 0.95, 0.5, 0.01, 0),
        min_p=choice(rows, 0, 0.05, 0.3, 1),
        typical_p=choice(rows, 1, 0.9, 0.3),
    )
    (wanted,) = op.reference()
    assert (wanted[5], wanted[6]) == (-1, -1)
    for device in devices.values():
        assert np.array_equal(op.run(device)[0], wanted)


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_k": 40},
        {"top_p": 0.95},
        {"top_p": 0.5},
        {"top_p": 0.99999},
        {"min_p": 0.05},
        {"min_p": 1e-9},
        {"typical_p": 0.9},
        {"temperature": 0},
        {"temperature": 1e-38},
        {"temperature": 30},
        {"temperature": 1.5, "top_p": 0.9, "min_p": 0.01},
        {"top_k": 3000, "top_p": 0.9},
    ],
)
@pytest.mark.parametrize("spread", [1.0, 12.0])
def test_a_large_vocabulary_gives_the_tokens_of_the_reference(
    device: NativeDevice, filters: dict[str, float], spread: float
) -> None:
    logits = (RNG.standard_normal((4, 50021)) * spread).astype(np.float32)
    settings = {n: np.full(4, v, np.int32 if n == "top_k" else np.float32) for n, v in filters.items()}
    op = sample(logits, **settings)
    assert np.array_equal(op.run(device)[0], op.reference()[0])


def test_uniform_numbers_at_the_ends_give_the_first_and_the_last_token(device: NativeDevice) -> None:
    logits = np.zeros((3, 1000), np.float32)
    op = sample(logits, uniform=np.array([0, 1 - 2.0**-24, 1], np.float32))
    assert op.run(device)[0].tolist() == [0, 999, 999]


def test_penalties_and_biases_deviate_no_more_than_declared(devices: dict[str, NativeDevice]) -> None:
    inputs = {
        "logits": (RNG.standard_normal((2, 64)) * 3).astype(np.float32),
        "token_ids": np.array([[3, 9, 1, -1], [0, 63, -1, -1]], np.int32),
        "output_counts": np.array([[0, 2, 1, 5], [1, 0, 0, 0]], np.int32),
        "repetition": np.array([1.3, 0.8], np.float32),
        "presence": np.array([0.5, 0.0], np.float32),
        "frequency": np.array([0.2, 0.1], np.float32),
    }
    biases = {
        "bias_ids": np.array([[3, 3, -1], [5, -1, -1]], np.int32),
        "bias_values": np.array([[1, 2, 9], [4, 9, 9]], np.float32),
    }
    for device in devices.values():
        assert_judged(OneOp("penalize", inputs), device)
        assert_judged(OneOp("penalize", inputs | biases), device)
