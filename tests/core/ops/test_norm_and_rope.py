"""rms_norm, layer_norm and rope against their formulas, written out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from runtime.ops import CATALOGUE, EXACT


def run(name: str, inputs: dict[str, Any], **attrs: Any) -> np.ndarray:
    data = {n: np.asarray(v, np.int64 if n == "positions" else np.float64) for n, v in inputs.items()}
    return CATALOGUE[f"{name}@1"].run_reference(EXACT, data, attrs)[0]


def test_rms_norm_of_three_and_four():
    # root mean square of (3, 4) is sqrt(12.5)
    y = run("rms_norm", {"x": [[3, 4]], "weight": [1, 10]}, eps=0.0)
    assert y[0] == pytest.approx([3 / math.sqrt(12.5), 40 / math.sqrt(12.5)], abs=1e-15)


def test_rms_norm_adds_eps_to_the_mean_square_and_the_offset_to_the_weight():
    y = run("rms_norm", {"x": [[1, 1]], "weight": [0.5, 1]}, eps=3.0, weight_offset=1.0)
    assert y.tolist() == [[0.75, 1.0]]


def test_rms_norm_treats_every_head_by_itself():
    y = run("rms_norm", {"x": [[3, 3, -5, -5], [0, 2, 8, 0]], "weight": [1, 1]}, eps=0.0)
    assert y == pytest.approx(np.array([[1, 1, -1, -1], [0, math.sqrt(2), math.sqrt(2), 0]]))


def test_layer_norm_of_one_two_three():
    y = run("layer_norm", {"x": [[1, 2, 3]], "weight": [1, 1, 2], "bias": [0, 5, 0]}, eps=0.0)
    assert y[0] == pytest.approx([-math.sqrt(1.5), 5, 2 * math.sqrt(1.5)])
    y = run("layer_norm", {"x": [[1, 2, 3]], "weight": [1, 1, 1]}, eps=1 / 3)
    assert y[0] == pytest.approx([-1, 0, 1])


def test_norms_of_no_rows_are_no_rows():
    assert run("rms_norm", {"x": np.zeros((0, 4)), "weight": np.ones(2)}, eps=1e-5).shape == (0, 4)
    assert run("layer_norm", {"x": np.zeros((0, 4)), "weight": np.ones(4)}, eps=1e-5).shape == (0, 4)
    empty = {"x": np.zeros((0, 4)), "positions": np.zeros(0), "inv_freq": [1.0]}
    assert run("rope", empty, head_dim=4).shape == (0, 4)


def rotate(a: float, b: float, angle: float) -> tuple[float, float]:
    return a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("num_freqs", [1, 2, 3])
def test_rope_rotates_pairs_of_the_first_2f_elements_of_every_head(interleaved: bool, num_freqs: int):
    rng = np.random.default_rng(3)
    head_dim, positions, inv_freq = 7, [0, 2, 1000], [1.0, 0.3, 0.01][:num_freqs]
    x = rng.standard_normal((3, 2 * head_dim))
    expected = x.copy()
    for t, position in enumerate(positions):
        for head in range(2):
            for i, freq in enumerate(inv_freq):
                first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + num_freqs)
                first, second = head * head_dim + first, head * head_dim + second
                a, b = rotate(x[t, first], x[t, second], position * freq)
                expected[t, first], expected[t, second] = 1.5 * a, 1.5 * b
    inputs = {"x": x, "positions": positions, "inv_freq": inv_freq}
    y = run("rope", inputs, head_dim=head_dim, interleaved=interleaved, scale=1.5)
    assert y == pytest.approx(expected, abs=1e-12)


def test_rope_by_a_right_angle_swaps_a_pair():
    y = run("rope", {"x": [[1, 0, 9]], "positions": [1], "inv_freq": [math.pi / 2]}, head_dim=3)
    assert y[0] == pytest.approx([0, 1, 9], abs=1e-15)


def test_rope_keeps_lengths_and_makes_scores_depend_on_distance_alone():
    rng = np.random.default_rng(5)
    q, k = rng.standard_normal((2, 8))
    inv_freq = 10000.0 ** (-np.arange(4) / 4)

    def score(i: int, j: int) -> float:
        y = run("rope", {"x": [q, k], "positions": [i, j], "inv_freq": inv_freq}, head_dim=8)
        assert np.linalg.norm(y, axis=1) == pytest.approx([np.linalg.norm(q), np.linalg.norm(k)])
        return float(y[0] @ y[1])

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-12)
    assert score(0, 0) == pytest.approx(float(q @ k))


def test_rope_leaves_its_input_alone():
    x = np.ones((1, 4))
    run("rope", {"x": x, "positions": [3], "inv_freq": [1.0, 0.5]}, head_dim=4)
    assert (x == 1).all()
