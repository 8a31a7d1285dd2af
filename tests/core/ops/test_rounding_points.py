"""Random rounding brackets what honest narrow arithmetic gives, and the declared points are the ones that occur."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.dtypes import round_to
from runtime.ops import CATALOGUE, Rounding
from runtime.ops.rounding import _spacing

Arrays = dict[str, np.ndarray]


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _honest_rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5)) * weight


def _honest_layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + np.float32(1e-5)) * weight + bias


def _honest_rope(x: np.ndarray, positions: np.ndarray, inv_freq: np.ndarray) -> np.ndarray:
    angle = positions.astype(np.float32)[:, None, None] * inv_freq
    a, b = np.split(x.reshape(len(x), -1, 2 * len(inv_freq)), 2, axis=-1)
    y = np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)
    return y.reshape(x.shape)


def _honest_attention(q: np.ndarray, kv: np.ndarray, **_: Any) -> np.ndarray:
    k, v = kv[:, 0]  # one block, [C, H, D]
    heads = q.reshape(len(q), 4, 16)
    s = np.stack([heads[:, h] @ k[:, h // 2].T for h in range(4)]) * np.float32(0.25)
    hidden = np.arange(len(q))[:, None] + (len(k) - len(q)) < np.arange(len(k))
    s[:, hidden] = -np.inf
    e = np.exp(s - s.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    return np.stack([p[h] @ v[:, h // 2] for h in range(4)], 1).reshape(q.shape)


def _honest_softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    inner = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


PAGING = {
    "block_table": np.array([[0]]),
    "query_start_loc": np.array([0, 40]),
    "seq_lens": np.array([64]),
}
CASES: dict[str, tuple[Arrays, dict[str, Any], Any]] = {
    "linear": ({"x": _normal(16, 256), "weight": _normal(32, 256)}, {}, lambda x, weight: x @ weight.T),
    "rms_norm": ({"x": _normal(16, 256), "weight": _normal(256)}, {"eps": 1e-5}, _honest_rms_norm),
    "layer_norm": (
        {"x": _normal(16, 256), "weight": _normal(256), "bias": _normal(255, 1)[:, 0].repeat(2)[:256]},
        {"eps": 1e-5},
        _honest_layer_norm,
    ),
    "rope": (
        {"x": _normal(16, 64), "positions": np.arange(16) * 97, "inv_freq": 10000.0 ** (-np.arange(8) / 8)},
        {"head_dim": 16},
        _honest_rope,
    ),
    "attention": (
        {"q": _normal(40, 64), "kv": _normal(2, 1, 64, 2, 16), **PAGING},
        {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "scale": 0.25},
        _honest_attention,
    ),
    "activation": ({"x": 3 * _normal(16, 64)}, {"kind": "gelu_tanh"}, _gelu_tanh),
    "glu": (
        {"gate": 3 * _normal(16, 64), "up": _normal(64, 16).T},
        {"kind": "silu"},
        lambda gate, up: _silu(gate) * up,
    ),
    "softmax": ({"x": 3 * _normal(16, 64)}, {}, _honest_softmax),
}


def _z_scores(name: str, fmt: str, gain: float = 1.0) -> np.ndarray:
    """Of an honest computation in float32 whose inputs and outputs are rounded to `fmt`, times `gain`."""
    inputs, attrs, honest = CASES[name]
    op = CATALOGUE[f"{name}@1"]
    # what the device is given is exact to begin with
    given = {n: round_to("f32", x) if x.dtype == np.float64 else x for n, x in inputs.items()}
    (oracle,) = op.run_reference(Rounding({}), given, attrs)
    points = {"activation": fmt, "accumulate": "f32", "probability": fmt, "output": fmt}
    rng = np.random.default_rng(1)
    runs = [op.run_reference(Rounding(points, "random", rng), given, attrs)[0] for _ in range(60)]
    deviation = np.std(runs, axis=0) + 1e-30
    weights = {"weight", "bias", "inv_freq"}
    narrow = {
        n: (x if n in weights else round_to(fmt, x)).astype(np.float32) if x.dtype == np.float64 else x
        for n, x in given.items()
    }
    return (round_to(fmt, honest(**narrow) * np.float32(gain)) - oracle) / deviation


@pytest.mark.parametrize("fmt", ["f32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_an_honest_narrow_computation_passes_and_a_gain_does_not(name: str, fmt: str):
    limits = CATALOGUE[f"{name}@1"].check
    z = _z_scores(name, fmt)
    assert np.abs(z).max() < limits.max_z
    rms = np.sqrt((z * z).mean())
    assert 0.02 < rms < limits.rms_z
    if fmt == "f32":
        off = _z_scores(name, fmt, gain=1.001)
        assert np.sqrt((off * off).mean()) > limits.rms_z


@pytest.mark.parametrize("name", CASES)
def test_the_rounding_points_that_occur_are_the_declared_ones(name: str):
    class Recorder(Rounding):
        def __init__(self) -> None:
            super().__init__({})
            self.seen: set[str] = set()

        def __call__(self, point: str, x: Any) -> Any:
            self.seen.add(point)
            return x

        def dot(self, a: Any, b: Any) -> Any:
            self.seen.add("accumulate")
            return super().dot(a, b)

        def sum(self, x: Any) -> Any:
            self.seen.add("accumulate")
            return super().sum(x)

    op, recorder = CATALOGUE[f"{name}@1"], Recorder()
    op.run_reference(recorder, CASES[name][0], CASES[name][1])
    assert recorder.seen == set(op.rounding)


def test_exact_rounding_returns_its_argument():
    x = _normal(3, 3)
    assert Rounding({"output": "bf16"})("output", x) is x
    assert Rounding({"output": "bf16"}, "nearest")("activation", x) is x


def test_nearest_rounding_of_scaled_integers_shares_a_scale_per_group():
    x = np.array([[127.0, 0.6, -3.4, 0.0, 254.0, 2.9]])
    y = Rounding({"activation": "i8/4"}, "nearest")("activation", x)
    assert y.tolist() == [[127.0, 1.0, -3.0, 0.0, 254.0, 2.0]]


def test_scaled_integers_take_rows_that_are_no_whole_groups_and_no_rows():
    rounding = Rounding({"activation": "i8/32"}, "nearest")
    assert rounding("activation", np.ones((2, 40))).tolist() == np.ones((2, 40)).tolist()
    assert rounding("activation", np.ones((0, 40))).shape == (0, 40)


@pytest.mark.parametrize(
    ("fmt", "x", "spacing"),
    [("f32", 1.0, 2.0**-23), ("bf16", 3.0, 2.0**-6), ("f16", 2.0**-20, 2.0**-24), ("f8_e4m3", 0.0, 2.0**-9)],
)
def test_spacing_is_that_of_the_format_down_to_its_subnormals(fmt: str, x: float, spacing: float):
    assert _spacing(np.array([x]), fmt).tolist() == [spacing]


def test_random_rounding_leaves_zero_infinity_and_nan_alone():
    x = np.array([0.0, np.inf, -np.inf, np.nan])
    y = Rounding({"output": "f16"}, "random", np.random.default_rng(0))("output", x)
    assert np.array_equal(x, y, equal_nan=True)


def test_random_rounding_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="generator"):
        Rounding({}, "random")


def test_a_running_sum_in_half_precision_stays_within_the_deviation_of_sum():
    rng = np.random.default_rng(2)
    x = round_to("f16", rng.random((200, 128)))
    total = np.zeros(200, np.float16)
    for column in x.astype(np.float16).T:
        total = total + column
    runs = [Rounding({"accumulate": "f16"}, "random", rng).sum(x)[:, 0] for _ in range(200)]
    z = (total.astype(float) - x.sum(1)) / np.std(runs, axis=0)
    assert 0.4 < np.sqrt((z * z).mean()) < 1.6


@pytest.mark.parametrize("k", [64, 256, 4096])
@pytest.mark.parametrize("same_sign", [False, True])
def test_products_that_are_summed_one_after_the_other_stay_within_the_deviation_of_dot(k: int, same_sign: bool):
    """Products of one sign (a query and its own key) round large partial sums: their errors outgrow a random walk's."""
    rng = np.random.default_rng(k)
    a, b = rng.standard_normal((2, 300, 1, k)).astype(np.float32)
    if same_sign:
        b = np.abs(b) * np.sign(a)
    total = np.add.accumulate(a * b, axis=-1, dtype=np.float32)[:, 0, -1]
    a, b = (a * b).astype(np.float64), np.ones(b.shape)  # the products as they were summed
    runs = [Rounding({"accumulate": "f32"}, "random", rng).dot(a, b)[:, 0, 0] for _ in range(200)]
    z = (total.astype(float) - a.sum(-1)[:, 0]) / np.std(runs, axis=0)
    assert 0.4 < np.sqrt((z * z).mean()) < 1.6


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh"])
def test_where_a_nonlinearity_vanishes_rounding_allows_what_little_is_left_of_it(kind: str):
    x = np.array([[-12.0]])
    run = CATALOGUE["activation@1"].run_reference
    assert abs(run(Rounding({}), {"x": x}, {"kind": kind})[0].item()) < 1e-15
    assert abs(run(Rounding({"accumulate": "f32"}, "nearest"), {"x": x}, {"kind": kind})[0].item()) < 1e-15
    random = Rounding({"accumulate": "f32"}, "random", np.random.default_rng(1))
    runs = [run(random, {"x": x}, {"kind": kind})[0].item() for _ in range(50)]
    assert 1e-8 < np.std(runs) < 1e-6
