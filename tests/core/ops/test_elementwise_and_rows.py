"""Elementwise operations, nonlinearities, moves and reductions, on values that one can check by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from runtime.ops import CATALOGUE, EXACT
from runtime.ops.special import erf, sigmoid

INTEGERS = ("token_ids", "rows")
INF, NAN = math.inf, math.nan


def run_all(name: str, inputs: dict[str, Any], **attrs: Any) -> tuple[np.ndarray, ...]:
    data = {n: np.asarray(v, np.int64 if n in INTEGERS else np.float64) for n, v in inputs.items()}
    return CATALOGUE[f"{name}@1"].run_reference(EXACT, data, attrs)


def run(name: str, inputs: dict[str, Any], **attrs: Any) -> list[Any]:
    return run_all(name, inputs, **attrs)[0].tolist()


def test_erf_agrees_with_the_c_library_to_the_last_bits():
    x = np.concatenate([np.linspace(-7, 7, 1401), [0.46875, 4.0, 1e-300, 30.0, INF, -INF]])
    expected = [math.erf(v) for v in x]
    assert np.abs(erf(x) - expected).max() < 5e-16
    assert np.isnan(erf(np.array([NAN]))).all()


def test_sigmoid_does_not_overflow():
    assert sigmoid(np.array([-800.0, 0.0, 800.0])).tolist() == [0.0, 0.5, 1.0]


def test_embed_takes_rows_and_scales_them():
    table = [[1, 2], [3, 4], [5, 6]]
    assert run("embed", {"token_ids": [2, 0, 2], "weight": table}, scale=0.5) == [[2.5, 3], [0.5, 1], [2.5, 3]]


def test_linear_adds_its_bias_to_every_row():
    assert run("linear", {"x": [[1, 2], [3, 4]], "weight": [[1, 1], [0, 2]], "bias": [10, 0]}) == [[13, 4], [17, 8]]


def test_add_and_mul():
    assert run("add", {"a": [[1, 2]], "b": [[3, 5]]}) == [[4, 7]]
    assert run("mul", {"a": [[1, 2]], "b": [[3, 5]]}, scale=2.0) == [[6, 20]]
    assert run("mul", {"a": [[1, 2]]}, scale=-1.5) == [[-1.5, -3]]


def test_softcap_bounds_large_values_and_leaves_small_ones():
    y = run("softcap", {"x": [[1e-3, 30, -1e9]]}, cap=30.0)[0]
    assert y == pytest.approx([1e-3, 30 * math.tanh(1), -30], rel=1e-8)


@pytest.mark.parametrize(
    ("fmt", "expected"),
    [
        ("bf16", [1.0, 0.10009765625, 3.3895313892515355e38, -INF]),
        ("f16", [1.0, 0.0999755859375, INF, -INF]),
        ("f32", [1.0, 0.10000000149011612, 3.3895313892515355e38, -INF]),
        ("f64", [1.0, 0.1, 3.3895313892515355e38, -1e39]),
    ],
)
def test_convert_rounds_to_nearest(fmt: str, expected: list[float]):
    assert run("convert", {"x": [[1.0, 0.1, 3.3895313892515355e38, -1e39]]}, format=fmt) == [expected]


@pytest.mark.parametrize(
    ("kind", "f"),
    {
        "silu": lambda x: x / (1 + math.exp(-x)),
        "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
        "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu": lambda x: max(x, 0.0),
        "relu2": lambda x: max(x, 0.0) ** 2,
        "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
        "tanh": math.tanh,
        "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    }.items(),
)
def test_nonlinearities_match_their_formulas_and_gate(kind: str, f: Any):
    x = [-9.5, -1.0, -0.25, 0.0, 0.5, 3.0, 12.0]
    assert run("activation", {"x": [x]}, kind=kind)[0] == pytest.approx([f(v) for v in x], abs=1e-14)
    if kind in ("silu", "gelu", "gelu_tanh"):
        y = run("glu", {"gate": [x], "up": [[-2.0] * 7]}, kind=kind)[0]
        assert y == pytest.approx([-2 * f(v) for v in x], abs=1e-14)


def test_the_gate_of_gpt_oss_is_bounded_above_and_its_up_on_both_sides():
    y = run("glu", {"gate": [[2.0, 100.0, -100.0]], "up": [[0.5, 50.0, -50.0]]}, kind="swiglu_oai")[0]
    assert y == pytest.approx([2 / (1 + math.exp(-3.404)) * 1.5, 7 / (1 + math.exp(-11.914)) * 8, 0], abs=1e-12)
    y = run("glu", {"gate": [[2.0]], "up": [[3.0]]}, kind="swiglu_oai", alpha=1.0, limit=1.0)[0]
    assert y == pytest.approx([2 / (1 + math.exp(-1))])


def test_gather_rows_may_repeat_and_reorder():
    assert run("gather_rows", {"x": [[1, 2], [3, 4], [5, 6]], "rows": [2, 0, 2]}) == [[5, 6], [1, 2], [5, 6]]


def test_concat_orders_ten_and_more_parts_by_number():
    parts = {f"x{i}": [[i], [-i]] for i in range(12)}
    assert run("concat", parts) == [list(range(12)), [-i for i in range(12)]]


def test_split_and_concat_undo_each_other():
    x = np.arange(12.0).reshape(2, 6)
    parts = run_all("split", {"x": x}, sizes=(1, 3, 2))
    assert [part.shape for part in parts] == [(2, 1), (2, 3), (2, 2)]
    assert run("concat", {f"x{i}": part for i, part in enumerate(parts)}) == x.tolist()


def test_softmax_of_logarithms_gives_their_ratios():
    scores = [[math.log(1), math.log(2), math.log(5), -INF], [1000.0, 1000.0, -INF, -INF]]
    assert np.array(run("softmax", {"x": scores})) == pytest.approx(
        np.array([[0.125, 0.25, 0.625, 0], [0.5, 0.5, 0, 0]])
    )
    y = run("softmax", {"x": scores}, log=True, scale=2.0)
    assert y[0][:3] == pytest.approx([math.log(v / 30) for v in (1, 4, 25)])
    assert (y[0][3], y[1][2]) == (-INF, -INF)


def test_softmax_of_nothing_but_minus_infinity_is_zero_and_nan_stays_in_its_row():
    y = run("softmax", {"x": [[-INF, -INF], [NAN, 1.0], [0.0, 0.0]]})
    assert y[0] == [0, 0]
    assert all(math.isnan(v) for v in y[1])
    assert y[2] == [0.5, 0.5]
    assert run("softmax", {"x": [[-INF, -INF]]}, log=True) == [[-INF, -INF]]


@pytest.mark.parametrize("width", [6, 5000])
def test_topk_is_descending_and_the_lower_index_wins_ties(width: int):
    x = np.full((2, width), -5.0)
    x[0, :6] = [1, 7, 7, NAN, 7, 2]
    x[1, :6] = [0, 0, 0, 0, 0, 0]
    values, indices = run_all("topk", {"x": x}, k=3)
    assert values.tolist() == [[7, 7, 7], [0, 0, 0]]
    assert indices.tolist() == [[1, 2, 4], [0, 1, 2]]
    values, indices = run_all("topk", {"x": x}, k=5)
    assert (values[0].tolist(), indices[0].tolist()) == ([7, 7, 7, 2, 1], [1, 2, 4, 5, 0])


def test_topk_of_wide_rows_equals_a_full_sort():
    x = np.random.default_rng(0).integers(0, 50, (4, 3000)).astype(float)
    values, indices = run_all("topk", {"x": x}, k=200)
    for row in range(4):
        order = sorted(range(3000), key=lambda i: (-x[row, i], i))[:200]
        assert indices[row].tolist() == order
        assert values[row].tolist() == x[row, order].tolist()


def test_argmax_takes_the_lowest_of_equals_and_passes_over_nan():
    assert run("argmax", {"x": [[1, 3, 3], [NAN, -INF, -1], [NAN, NAN, NAN]]}) == [1, 2, 0]
