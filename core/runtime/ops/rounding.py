"""Named rounding points: one reference serves as oracle, as source of the tolerance, and as host kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIGNIFICAND_BITS = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8, "f8_e4m3": 4, "f8_e5m2": 3}
"""Hidden bit included."""
_MIN_EXPONENT = {"f64": -1022, "f32": -126, "f16": -14, "bf16": -126, "f8_e4m3": -6, "f8_e5m2": -14}
"""Of the smallest normal number; below it the spacing no longer shrinks."""

Mode = Literal["exact", "nearest", "random"]


class Rounding:
    """What happens at the rounding points of a reference.

    exact     nothing: the float64 oracle
    nearest   round to nearest even to the format declared for the point: what an honest device would give
    random    a random error of the declared format's size: many runs give the standard deviation of every element

    `formats` maps points (activation, accumulate, probability, kv, output, ...) to format names. A point that is not
    in it is not rounded. "i8/32" stands for 8-bit integers with one scale per 32 elements of the innermost dimension.
    """

    def __init__(
        self, formats: Mapping[str, str], mode: Mode = "exact", rng: np.random.Generator | None = None
    ) -> None:
        if mode == "random" and rng is None:
            raise ValueError("random rounding needs a generator")
        self.formats = formats
        self.mode = mode
        self.rng = rng

    def __call__(self, point: str, x: NDArray[Any]) -> NDArray[Any]:
        """Round `x` as `point` demands; float64 in, float64 out."""
        fmt = self.formats.get(point)
        if fmt is None or fmt == "f64" or self.mode == "exact":
            return x
        if fmt.startswith("i8/"):
            return self._scaled_integer(x, 127, int(fmt[3:]))
        if self.mode == "nearest":
            return _nearest(fmt, x)
        import numpy as np

        assert self.rng is not None
        noise = self.rng.uniform(-0.5, 0.5, x.shape)
        noisy: NDArray[Any] = np.where(np.isfinite(x) & (x != 0), x + noise * _spacing(x, fmt), x)
        return noisy

    def dot(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        """Matrix product a [..., M, K] with b [..., N, K] -> [..., M, N], summed at the point `accumulate`.

        As `sum`, whose variance for products of random signs is that of a random walk, 4^-p K / 6 times the sum of
        their squares. Products of one sign (a query and its own key, say) add up to more: then every partial sum is
        large, and so is its rounding. Terms that happen to cancel in one element are not taken to make it more exact.
        """
        import numpy as np

        y: NDArray[Any] = a @ np.swapaxes(b, -1, -2)
        fmt = self.formats.get("accumulate", "f64")
        if self.mode != "random" or fmt == "f64":
            return y
        assert self.rng is not None
        k = a.shape[-1]
        squares = (a * a) @ np.swapaxes(b * b, -1, -2)
        deviation = 2.0 ** -SIGNIFICAND_BITS[fmt] * np.sqrt(k * (np.maximum(y * y, squares) / 9 + squares / 18))
        result: NDArray[Any] = y + self.rng.standard_normal(y.shape) * deviation
        return result

    def sum(self, x: NDArray[Any]) -> NDArray[Any]:
        """Sum over the innermost dimension, which is kept with size 1, at the point `accumulate`.

        For a running sum in random order, whose end is known, the partial sums are a bridge with drift: K roundings
        of 2^-p give the variance 4^-p K (sum^2 / 9 + sum of squares / 18).
        """
        import numpy as np

        y: NDArray[Any] = x.sum(-1, keepdims=True)
        fmt = self.formats.get("accumulate", "f64")
        if self.mode != "random" or fmt == "f64":
            return y
        assert self.rng is not None
        k = x.shape[-1]
        deviation = 2.0 ** -SIGNIFICAND_BITS[fmt] * np.sqrt(k * (y * y / 9 + (x * x).sum(-1, keepdims=True) / 18))
        result: NDArray[Any] = y + self.rng.standard_normal(y.shape) * deviation
        return result

    def _scaled_integer(self, x: NDArray[Any], largest: int, group_size: int) -> NDArray[Any]:
        import numpy as np

        width = x.shape[-1]
        num_groups = -(-width // group_size)  # the last group may be short
        groups = np.zeros((*x.shape[:-1], num_groups, group_size))
        padded = (*x.shape[:-1], num_groups * group_size)
        groups.reshape(padded)[..., :width] = x
        scale = np.abs(groups).max(-1, keepdims=True) / largest
        if self.mode == "nearest":
            groups = np.rint(groups / np.where(scale == 0, 1, scale)) * scale
        else:
            assert self.rng is not None
            groups = groups + self.rng.uniform(-0.5, 0.5, groups.shape) * scale
        rounded: NDArray[Any] = groups.reshape(padded)[..., :width]
        return rounded


EXACT = Rounding({})


def _spacing(x: NDArray[Any], fmt: str) -> NDArray[Any]:
    import numpy as np

    _, exponent = np.frexp(np.where(np.isfinite(x), x, 0.0))
    exponent = np.where(x == 0, _MIN_EXPONENT[fmt], np.maximum(exponent - 1, _MIN_EXPONENT[fmt]))
    result: NDArray[Any] = np.ldexp(1.0, exponent - SIGNIFICAND_BITS[fmt] + 1)
    return result


def _nearest(fmt: str, x: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    if fmt == "f32":
        with np.errstate(over="ignore"):
            rounded: NDArray[Any] = x.astype(np.float32).astype(np.float64)
            return rounded
    from runtime.dtypes.rounding import round_to

    return round_to(fmt, x)
