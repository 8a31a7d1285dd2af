"""Named rounding points: one reference serves as oracle, as source of the tolerance, and as host kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIGNIFICAND_BITS = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}
"""Hidden bit included."""

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
        noisy: NDArray[Any] = np.where(np.isfinite(x), x + noise * _spacing(x, SIGNIFICAND_BITS[fmt]), x)
        return noisy

    def dot(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        """Matrix product a [..., M, K] with b [..., N, K] -> [..., M, N], summed at the point `accumulate`.

        The random error of a sum of K products in a format with p bits grows like 2^-p sqrt(K / 6) times the root of
        the sum of squared products (independent roundings of a running sum in random order).
        """
        import numpy as np

        y: NDArray[Any] = a @ np.swapaxes(b, -1, -2)
        fmt = self.formats.get("accumulate", "f64")
        if self.mode != "random" or fmt == "f64":
            return y
        assert self.rng is not None
        k = a.shape[-1]
        norm = np.sqrt((a * a) @ np.swapaxes(b * b, -1, -2))
        result: NDArray[Any] = (
            y + self.rng.standard_normal(y.shape) * 2.0 ** -SIGNIFICAND_BITS[fmt] * np.sqrt(k / 6) * norm
        )
        return result

    def _scaled_integer(self, x: NDArray[Any], largest: int, group_size: int) -> NDArray[Any]:
        import numpy as np

        groups = x.reshape(*x.shape[:-1], -1, group_size)
        scale = np.abs(groups).max(-1, keepdims=True) / largest
        if self.mode == "nearest":
            safe = np.where(scale == 0, 1, scale)
            rounded: NDArray[Any] = (np.rint(groups / safe) * scale).reshape(x.shape)
            return rounded
        assert self.rng is not None
        noisy: NDArray[Any] = (groups + self.rng.uniform(-0.5, 0.5, groups.shape) * scale).reshape(x.shape)
        return noisy


EXACT = Rounding({})


def _spacing(x: NDArray[Any], significand_bits: int) -> NDArray[Any]:
    import numpy as np

    exponent = np.floor(np.log2(np.maximum(np.abs(x), 1e-300)))
    result: NDArray[Any] = 2.0 ** (exponent - significand_bits + 1)
    return result


def _nearest(fmt: str, x: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    if fmt == "f32":
        with np.errstate(over="ignore"):
            rounded: NDArray[Any] = x.astype(np.float32).astype(np.float64)
            return rounded
    from runtime.dtypes.rounding import round_to

    return round_to(fmt, x)
