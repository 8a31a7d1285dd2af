"""Rounding to a narrower format's grid: exhaustive over its values and the midpoints between them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runtime.dtypes import FORMATS, round_to
from runtime.errors import Unsupported

NARROW = ("f16", "bf16", "f8_e4m3", "f8_e5m2")


def finite_rising(name: str) -> np.ndarray:
    """All finite values from zero up, in float64, in the order of their codes."""
    fmt = FORMATS[name]
    codes = np.arange(128 if fmt.block_bytes == 1 else 32768).astype(f"<u{fmt.block_bytes}")
    values = fmt.decode(codes.tobytes(), codes.shape)
    return values[np.isfinite(values)].astype(np.float64)


@pytest.mark.parametrize("name", NARROW)
def test_values_of_the_grid_stay(name: str) -> None:
    values = finite_rising(name)
    np.testing.assert_array_equal(round_to(name, values), values)
    np.testing.assert_array_equal(round_to(name, -values), -values)


@pytest.mark.parametrize("name", NARROW)
def test_midpoints_go_to_the_even_code_and_their_neighbours_to_the_nearest(name: str) -> None:
    values = finite_rising(name)
    below, above = values[:-1], values[1:]
    middle = (below + above) / 2
    even = np.where(np.arange(len(middle)) % 2 == 0, below, above)
    for sign in (1.0, -1.0):
        np.testing.assert_array_equal(round_to(name, sign * middle), sign * even)
        np.testing.assert_array_equal(round_to(name, sign * np.nextafter(middle, 0)), sign * below)
        np.testing.assert_array_equal(round_to(name, sign * np.nextafter(middle, np.inf)), sign * above)


@pytest.mark.parametrize(
    ("name", "value", "rounded"),
    [
        ("f32", 1e39, math.inf),
        ("f32", 2.0**-150, 0.0),
        ("f32", 1.5 * 2.0**-149, 2.0**-148),
        ("f16", 65519.99, 65504.0),
        ("f16", -65520.0, -math.inf),
        ("bf16", 3.3961775292304957e38, math.inf),
        ("bf16", 3.39e38, 255 * 2.0**120),
        ("bf16", 1.7e308, math.inf),
        ("bf16", 5e-324, 0.0),
        ("f8_e5m2", 61440.0, math.inf),
        ("f8_e4m3", 1e300, 448.0),
        ("f8_e4m3", -math.inf, -448.0),
        ("f64", 1e300, 1e300),
    ],
)
def test_overflow_and_subnormals(name: str, value: float, rounded: float) -> None:
    assert round_to(name, [value]).tolist() == [rounded]


@pytest.mark.parametrize("name", ["f64", "f32", *NARROW])
def test_nan_stays_and_zero_keeps_its_sign(name: str) -> None:
    out = round_to(name, np.array([[np.nan, -0.0, -1e-320]], np.float64))
    assert out.dtype == np.float64
    assert out.shape == (1, 3)
    assert np.isnan(out[0, 0])
    assert np.signbit(out[0, 1:]).all()


@pytest.mark.parametrize("name", ["f64", "f32", *NARROW])
def test_a_single_number_and_a_signalling_nan_are_no_trouble(name: str) -> None:
    assert round_to(name, -1.5).shape == ()
    assert round_to(name, -1.5) == -1.5
    assert np.isnan(round_to(name, np.array([0x7F800001], np.uint32).view(np.float32))).all()


@pytest.mark.parametrize("name", ["f64", "f32", "bf16"])
def test_the_argument_is_not_written_to(name: str) -> None:
    values = np.array([1.0 + 2.0**-40])
    out = round_to(name, values)
    out[0] = 7
    assert values[0] == 1.0 + 2.0**-40


def test_rounding_to_a_format_without_a_grid_is_refused() -> None:
    with pytest.raises(
        Unsupported, match="rounding to 'q4_0' is not defined; float formats that can be rounded to: f64, f32"
    ):
        round_to("q4_0", [1.0])
