"""linear and embed: every format, both kernels, all tails."""

from __future__ import annotations

import numpy as np
import pytest
from single import Case, assert_close, random

FORMATS_AND_SIZES = [
    ("f32", 1),
    ("f32", 7),
    ("f32", 100),
    ("f32", 257),
    ("f16", 33),
    ("f16", 128),
    ("bf16", 50),
    ("q8_0", 32),
    ("q8_0", 416),
    ("q4_0", 32),
    ("q4_0", 288),
    ("q4_k", 256),
    ("q4_k", 768),
    ("q6_k", 256),
    ("q6_k", 1280),
]


def product_scale(case: Case) -> np.ndarray:
    """The norm of the products that are summed: what the error of a float32 sum is measured by."""
    x, weight = case.values["x"].astype(np.float64), case.values["weight"].astype(np.float64)
    return np.sqrt((x * x) @ (weight * weight).T) + 1e-30


@pytest.mark.parametrize(("fmt", "size"), FORMATS_AND_SIZES)
@pytest.mark.parametrize("num_tokens", [1, 3, 8, 9, 40])
def test_linear_is_right_for_every_format_at_its_edges(device, fmt: str, size: int, num_tokens: int) -> None:
    case = Case("linear", x=random(1, num_tokens, size), weight=(random(2, 37, size), fmt))
    (y,) = case.run(device)
    assert_close(y, case.expected()[0], ulps=16, scale=product_scale(case))


@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 65])
@pytest.mark.parametrize("num_tokens", [2, 32, 33])
def test_linear_with_bias_fills_every_row_and_no_more(device, num_rows: int, num_tokens: int) -> None:
    x, weight, bias = random(3, num_tokens, 64), random(4, num_rows, 64), random(5, num_rows)
    case = Case("linear", x=x, weight=(weight, "q8_0"), bias=bias)
    (y,) = case.run(device)
    assert_close(y, case.expected()[0], ulps=16, scale=product_scale(case) + 1)


@pytest.mark.parametrize("num_tokens", range(1, 41))
def test_small_integers_are_exact_for_every_number_of_tokens(device, num_tokens: int) -> None:
    rng = np.random.default_rng(num_tokens)
    x = rng.integers(-3, 4, (num_tokens, 96)).astype(np.float32)
    weight = rng.integers(-3, 4, (34, 96)).astype(np.float32)
    (y,) = Case("linear", x=x, weight=(weight, "f16")).run(device)
    np.testing.assert_array_equal(y, x @ weight.T)


@pytest.mark.parametrize("num_tokens", [1, 12])
def test_infinity_and_nan_stay_in_their_rows(device, num_tokens: int) -> None:
    x = random(6, num_tokens, 50)
    x[0, 49], x[-1, 3] = np.inf, np.nan
    case = Case("linear", x=x, weight=(random(7, 33, 50), "f32"))
    (y,) = case.run(device)
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(case.expected()[0]))


def test_the_same_step_gives_the_same_bits(device) -> None:
    case = Case("linear", x=random(8, 20, 512), weight=(random(9, 40, 512), "q4_k"))
    np.testing.assert_array_equal(case.run(device)[0], case.run(device)[0])


@pytest.mark.parametrize(("fmt", "size"), FORMATS_AND_SIZES)
@pytest.mark.parametrize("scale", [1.0, 11.313708498984761])
def test_embed_decodes_exactly(device, fmt: str, size: int, scale: float) -> None:
    ids = np.array([4, 0, 4, 12, 7], np.int32)
    case = Case("embed", {"scale": scale}, token_ids=ids, weight=(random(10, 13, size), fmt))
    (x,) = case.run(device)
    np.testing.assert_array_equal(x, case.expected()[0].astype(np.float32))
