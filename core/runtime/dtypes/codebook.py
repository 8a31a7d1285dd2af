"""Sixteen-entry codebooks: two looked-up values per byte, by translating bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.dtypes.unpack import U8


class NibbleCodebook:
    """Maps each nibble to one of sixteen int8 values."""

    def __init__(self, values: Sequence[int]) -> None:
        self._low = bytes(values[byte & 15] & 255 for byte in range(256))
        self._high = bytes(values[byte >> 4] & 255 for byte in range(256))

    def look_up(self, packed: U8) -> NDArray[np.int8]:
        """Values of the low, then of the high nibbles of each row: uint8 [..., w] to int8 [..., 2, w]."""
        raw = packed.tobytes()
        out = np.empty((*packed.shape[:-1], 2, packed.shape[-1]), np.int8)
        # bytes.translate is several times faster than indexing, which would widen every index to 64 bits
        out[..., 0, :] = np.frombuffer(raw.translate(self._low), np.int8).reshape(packed.shape)
        out[..., 1, :] = np.frombuffer(raw.translate(self._high), np.int8).reshape(packed.shape)
        return out
