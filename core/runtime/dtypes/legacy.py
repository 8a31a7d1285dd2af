"""Decoders of the formats with 32 elements a block: q4_0, q4_1, q5_0, q5_1, q8_0.

In the first four, element i and element i + 16 share byte i: low nibble and high nibble.
"""

from __future__ import annotations

import numpy as np

from runtime.dtypes.unpack import F32, U8, Fills, field, halves, nibbles


def _q4_0(blocks: U8, out: F32) -> None:
    """[d f16 | 16 bytes of nibbles]: d * (q - 8)."""
    q = nibbles(blocks[:, 2:18]).view(np.int8)
    q -= 8
    out[...] = q.reshape(-1, 32)
    out *= halves(blocks, 0)


def _q4_1(blocks: U8, out: F32) -> None:
    """[d f16 | m f16 | 16 bytes of nibbles]: d * q + m."""
    out[...] = nibbles(blocks[:, 4:20]).reshape(-1, 32)
    out *= halves(blocks, 0)
    out += halves(blocks, 2)


def _five_bits(high: U8, low: U8) -> U8:
    """Nibbles with bit i of the 32 bits in `high` above element i: uint8 [n, 32]."""
    q = np.unpackbits(high, axis=1, bitorder="little")
    q <<= 4
    q |= nibbles(low).reshape(-1, 32)
    return q


def _q5_0(blocks: U8, out: F32) -> None:
    """[d f16 | 32 high bits | 16 bytes of nibbles]: d * (q - 16)."""
    q = _five_bits(blocks[:, 2:6], blocks[:, 6:22]).view(np.int8)
    q -= 16
    out[...] = q
    out *= halves(blocks, 0)


def _q5_1(blocks: U8, out: F32) -> None:
    """[d f16 | m f16 | 32 high bits | 16 bytes of nibbles]: d * q + m."""
    out[...] = _five_bits(blocks[:, 4:8], blocks[:, 8:24])
    out *= halves(blocks, 0)
    out += halves(blocks, 2)


def _q8_0(blocks: U8, out: F32) -> None:
    """[d f16 | 32 int8]: d * q."""
    out[...] = field(blocks, 2, 32, "i1")
    out *= halves(blocks, 0)


FILLS: Fills = {"q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "q8_0": _q8_0}
