"""What the block decoders share: reading scales, splitting bit fields, and applying a scale per group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Fill = Callable[[U8, F32], None]
Fills = Mapping[str, Fill]


def field(blocks: U8, start: int, count: int, dtype: str) -> NDArray[Any]:
    """`count` little-endian numbers of `dtype` at byte `start` of each block: [n, count]."""
    width = np.dtype(dtype).itemsize * count
    return np.ascontiguousarray(blocks[:, start : start + width]).view(dtype)


def halves(blocks: U8, start: int, count: int = 1) -> F32:
    """`count` float16 numbers at byte `start` of each block, widened: float32 [n, count]."""
    return field(blocks, start, count, "<f2").astype(np.float32)


def nibbles(packed: U8) -> U8:
    """Low, then high nibbles of each row: uint8 [..., w] to [..., 2, w]."""
    out = np.empty((*packed.shape[:-1], 2, packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 15, out=out[..., 0, :])
    np.right_shift(packed, 4, out=out[..., 1, :])
    return out


def bit_fields(packed: U8, bits: int) -> U8:
    """Fields of `bits` bits, lowest first, each plane apart: uint8 [..., w] to [..., 8 // bits, w]."""
    planes = 8 // bits
    out = np.empty((*packed.shape[:-1], planes, packed.shape[-1]), np.uint8)
    for plane in range(planes):
        np.right_shift(packed, plane * bits, out=out[..., plane, :])
    out &= (1 << bits) - 1
    return out


def interleaved(packed: U8, bits: int) -> U8:
    """Fields of `bits` bits, lowest first, those of one byte together: uint8 [n, w] to [n, w * 8 // bits]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields: U8 = (packed[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed), -1)


def scale_groups(out: F32, scales: F32, offsets: F32 | None = None) -> None:
    """Multiply equal groups of each row of `out` by `scales` [n, g], then subtract `offsets` [n, g], in place.

    `out` is float32 [n, group_size], g divides group_size.
    """
    groups = out.reshape(*scales.shape, -1)
    np.multiply(groups, scales[:, :, None], out=groups)
    if offsets is not None:
        np.subtract(groups, offsets[:, :, None], out=groups)
