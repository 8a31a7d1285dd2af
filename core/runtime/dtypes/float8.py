"""The 8-bit floats f8_e4m3 and f8_e5m2, alone and under scales of groups, decoded through tables of 256 values.

Source: OCP 8-bit Floating Point Specification 1.0. f8_e4m3 is what safetensors calls F8_E4M3 and torch
`float8_e4m3fn`: no infinities, largest value 448, not-a-number is 0x7f and 0xff. f8_e5m2 is a float16 without its lower
byte.

f8_e4m3_g128 is how weights of FP8 checkpoints are kept here: a float32 scale, then 128 codes of a row. Scales per
tensor, per row and per square of 128 x 128 all become scales of 128 elements, with the same product of code and scale.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from runtime.dtypes.format import Format

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@cache
def e4m3_values() -> NDArray[np.float32]:
    """The value of each of the 256 codes: float32 [256]."""
    import numpy as np

    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    positive = np.where(exponent == 0, np.ldexp(mantissa / 8.0, -6), np.ldexp(1 + mantissa / 8.0, exponent - 7))
    positive[127] = np.nan
    return np.concatenate([positive, -positive]).astype(np.float32)


@cache
def e5m2_values() -> NDArray[np.float32]:
    """The value of each of the 256 codes: float32 [256]."""
    import numpy as np

    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


def _decode_e4m3(blocks: NDArray[np.uint8]) -> NDArray[Any]:
    return e4m3_values()[blocks]


def _decode_e5m2(blocks: NDArray[np.uint8]) -> NDArray[Any]:
    return e5m2_values()[blocks]


def _decode_e4m3_g128(blocks: NDArray[np.uint8]) -> NDArray[Any]:
    import numpy as np

    scales = np.ascontiguousarray(blocks[:, :4]).view("<f4")
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        values: NDArray[Any] = e4m3_values()[blocks[:, 4:]] * scales
    return values


F8_E4M3 = Format("f8_e4m3", "float", 1, 1, _decode_e4m3)
F8_E5M2 = Format("f8_e5m2", "float", 1, 1, _decode_e5m2)
F8_E4M3_G128 = Format("f8_e4m3_g128", "block", 128, 132, _decode_e4m3_g128)
