"""Rounding to the grid of a narrower float format, with the result in float64.

The reference operations compute in float64 and round where a real kernel would store: at their named rounding points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import Unsupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class _Grid:
    precision: int  # bits of the significand, the hidden one included
    min_exponent: int  # of the smallest normal number, 2 ** min_exponent
    largest: float
    saturates: bool = False


_NATIVE = {"f32": "f4", "f16": "f2"}
_GRIDS = {
    "bf16": _Grid(8, -126, (2 - 2**-7) * 2.0**127),
    "f8_e4m3": _Grid(4, -6, 448.0, saturates=True),
    "f8_e5m2": _Grid(3, -14, 57344.0),
}


def round_to(name: str, array: ArrayLike) -> NDArray[np.float64]:
    """Round to nearest, ties to even, onto the values of format `name`: float64 of the shape of `array`, a new array.

    name      f64, f32, f16, bf16, f8_e4m3 or f8_e5m2
    overflow  to infinity, as IEEE 754 rounds; f8_e4m3 has no infinity and saturates at 448, as torch's does
    subnormal kept, never flushed to zero; NaN stays NaN, the sign of zero is kept
    """
    import numpy as np

    # casting a signalling NaN, or a value too large, is no fault here
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = np.array(array, dtype=np.float64)
        if name in _NATIVE:
            return values.astype(_NATIVE[name]).astype(np.float64)
    if name == "f64":
        return values
    grid = _GRIDS.get(name)
    if grid is None:
        known = ", ".join(("f64", *_NATIVE, *_GRIDS))
        raise Unsupported(
            f"rounding to '{name}' is not defined", remedy=f"float formats that can be rounded to: {known}"
        )
    return _round_to_grid(grid, values.reshape(-1)).reshape(values.shape)


def _round_to_grid(grid: _Grid, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round float64 [n]."""
    import numpy as np

    # normal numbers: add just under half a unit of the last kept bit, plus that bit; a carry moves into the exponent
    dropped = 53 - grid.precision
    bits = values.view(np.uint64)
    odd = (bits >> np.uint64(dropped)) & np.uint64(1)
    rounded = bits + odd + np.uint64((1 << (dropped - 1)) - 1)
    rounded &= np.uint64(~((1 << dropped) - 1) & (2**64 - 1))
    result: NDArray[np.float64] = rounded.view(np.float64)

    is_subnormal = np.abs(values) < 2.0**grid.min_exponent
    quantum = 2.0 ** (grid.min_exponent - grid.precision + 1)
    result[is_subnormal] = np.rint(values[is_subnormal] / quantum) * quantum
    is_over = np.abs(result) > grid.largest
    result[is_over] = np.copysign(grid.largest if grid.saturates else np.inf, values[is_over])
    is_nan = np.isnan(values)
    result[is_nan] = values[is_nan]
    return result
