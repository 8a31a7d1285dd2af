"""Norms, rope, elementwise operations and reductions."""

from __future__ import annotations

import numpy as np
import pytest
from single import Case, assert_close, random

from runtime.ops import Rounding

KINDS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "quick_gelu")
SPECIAL = np.array([[0.0, -0.0, 1e-30, -20.0, 30.0, -90.0, 95.0, np.inf, -np.inf, np.nan]], np.float32)


@pytest.mark.parametrize(("width", "run"), [(1, 1), (64, 64), (100, 100), (96, 32), (1025, 1025), (6000, 6000)])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_rms_norm(device, width: int, run: int, num_tokens: int) -> None:
    attrs = {"eps": 1e-6, "weight_offset": 1.0}
    case = Case("rms_norm", attrs, x=random(1, num_tokens, width, scale=40), weight=random(2, run))
    assert_close(case.run(device)[0], case.expected()[0], ulps=8)


@pytest.mark.parametrize("width", [1, 63, 64, 300])
@pytest.mark.parametrize("has_bias", [False, True])
def test_layer_norm(device, width: int, has_bias: bool) -> None:
    bias = {"bias": random(3, width)} if has_bias else {}
    case = Case("layer_norm", {"eps": 1e-5}, x=random(1, 7, width) + 3, weight=random(2, width), **bias)
    assert_close(case.run(device)[0], case.expected()[0], ulps=32)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "num_freqs", "heads"), [(2, 1, 1), (64, 32, 3), (80, 20, 2), (128, 64, 1)])
def test_rope(device, interleaved: bool, head_dim: int, num_freqs: int, heads: int) -> None:
    positions = np.array([0, 1, 77, 4095, 131071], np.int32)
    inv_freq = (10000.0 ** (-np.arange(num_freqs) / num_freqs)).astype(np.float32)
    attrs = {"head_dim": head_dim, "interleaved": interleaved, "scale": 1.25}
    case = Case("rope", attrs, x=random(4, 5, heads * head_dim), positions=positions, inv_freq=inv_freq)
    rounded = Rounding({"accumulate": "f32"}, "nearest")  # the angle is a float32, here as there
    assert_close(case.run(device)[0], case.expected(rounded)[0], ulps=16)


def nonlinear_scale(kind: str, x: np.ndarray, expected: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """What an error is measured by: where 1 + tanh or 1 + erf cancels, a rounding of 1 is what remains of the result;
    an exponential magnifies the rounding of its argument by that argument."""
    with np.errstate(invalid="ignore"):
        scale = largest if kind.startswith("gelu") else np.abs(expected) * (1 + np.minimum(np.abs(x), 100))
    return np.where(np.isfinite(scale), scale, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_activation(device, kind: str) -> None:
    for x in (random(5, 3, 67, scale=3), SPECIAL):
        case = Case("activation", {"kind": kind}, x=x)
        expected = case.expected()[0]
        assert_close(case.run(device)[0], expected, ulps=16, scale=nonlinear_scale(kind, x, expected, np.abs(x)))


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "swiglu_oai"])
def test_glu(device, kind: str) -> None:
    for gate, up in ((random(6, 2, 65, scale=4), random(7, 2, 65, scale=4)), (SPECIAL, SPECIAL[:, ::-1].copy())):
        case = Case("glu", {"kind": kind}, gate=gate, up=up)
        expected = case.expected()[0]
        with np.errstate(invalid="ignore"):
            product = np.abs(gate * up)
        assert_close(case.run(device)[0], expected, ulps=16, scale=nonlinear_scale(kind, gate, expected, product))


def ulps(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest distance in float32 units of the last place."""
    spacing = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(got - expected) / spacing))


def test_add_and_mul_round_once(device) -> None:
    a, b = random(8, 9, 131), random(9, 9, 131)
    add, product = Case("add", a=a, b=b), Case("mul", a=a, b=b)
    np.testing.assert_array_equal(add.run(device)[0], a + b)
    np.testing.assert_array_equal(product.run(device)[0], a * b)
    for inputs in ({"a": a}, {"a": a, "b": b}):
        case = Case("mul", {"scale": 0.0883883476483184}, **inputs)
        assert ulps(case.run(device)[0], case.expected()[0]) <= 1


def test_mul_keeps_infinity_and_nan(device) -> None:
    a = np.array([[np.inf, -np.inf, np.nan, 3e38, 0.0]], np.float32)
    for scale, large in ((1.0, np.float32(3e38)), (3.0, np.inf), (0.1, np.float32(3e37))):
        got = Case("mul", {"scale": scale}, a=a).run(device)[0]
        np.testing.assert_allclose(got, [[np.inf, -np.inf, np.nan, large, 0.0]], rtol=1e-7)


def test_softcap(device) -> None:
    case = Case("softcap", {"cap": 30.0}, x=random(10, 4, 77, scale=50))
    assert ulps(case.run(device)[0], case.expected()[0]) <= 4


@pytest.mark.parametrize("target", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("source", ["f32", "f16", "bf16"])
def test_convert_is_exact(device, source: str, target: str) -> None:
    x = np.concatenate(
        [random(11, 1, 300, scale=30), SPECIAL, np.array([[65519.0, 65520.0, 1e-7, 3e-8, 3.3e38]], "f4")], 1
    )
    case = Case("convert", {"format": target}, x=(x, source))
    got, expected = case.run(device)[0].astype(np.float64), case.expected()[0]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("width", [1, 63, 257, 5000])
@pytest.mark.parametrize("log", [False, True])
def test_softmax(device, width: int, log: bool) -> None:
    x = random(12, 3, width, scale=5)
    x[1, width // 2] = -np.inf
    x[2] = -np.inf
    case = Case("softmax", {"log": log, "scale": 0.7}, x=x)
    assert_close(case.run(device)[0], case.expected()[0], ulps=40)


@pytest.mark.parametrize("width", [1, 5, 256, 4099])
def test_argmax_takes_the_lowest_of_equals_and_skips_nan(device, width: int) -> None:
    x = np.round(random(13, 8, width))
    x[0], x[1], x[2, 0] = np.nan, -np.inf, np.nan
    x[3, width // 2 :] = 9.0
    case = Case("argmax", x=x)
    np.testing.assert_array_equal(case.run(device)[0], case.expected()[0])


def test_rows_are_moved_as_they_are(device) -> None:
    x, rows = random(14, 6, 65), np.array([5, 0, 0, 3], np.int32)
    np.testing.assert_array_equal(Case("gather_rows", x=x, rows=rows).run(device)[0], x[rows])
    parts = [random(15, 4, 3), random(16, 4, 70), random(17, 4, 1)]
    joined = Case("concat", x0=parts[0], x1=parts[1], x2=parts[2]).run(device)[0]
    np.testing.assert_array_equal(joined, np.concatenate(parts, 1))
    for got, expected in zip(Case("split", {"sizes": (3, 70, 1)}, x=joined).run(device), parts):
        np.testing.assert_array_equal(got, expected)
