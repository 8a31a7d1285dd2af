"""Decoders of the ternary formats, elements -d, 0 or d, 256 a block: tq1_0 and tq2_0."""

from __future__ import annotations

import numpy as np

from runtime.dtypes.unpack import F32, U8, Fills, bit_fields, halves

_POWERS_OF_3 = np.array([[1], [3], [9], [27], [81]], dtype=np.uint8)


def _tq1_0(blocks: U8, out: F32) -> None:
    """[48 bytes of five trits | 4 bytes of four trits | d f16]: d * (trit - 1).

    A byte is a fraction of 256: multiplied by 3**k modulo 256, its first base-3 digit is trit k. Trit k of bytes
    0-31 are elements 32 k ..., of bytes 32-47 elements 160 + 16 k ..., of bytes 48-51 elements 240 + 4 k ...
    """
    q = np.empty((len(blocks), 256), np.uint8)
    np.multiply(blocks[:, None, :32], _POWERS_OF_3, out=q[:, :160].reshape(-1, 5, 32))
    np.multiply(blocks[:, None, 32:48], _POWERS_OF_3, out=q[:, 160:240].reshape(-1, 5, 16))
    np.multiply(blocks[:, None, 48:52], _POWERS_OF_3[:4], out=q[:, 240:].reshape(-1, 4, 4))
    # floor(3 q / 256) without leaving eight bits: 0 up to 85, 1 up to 170, else 2
    trits = (q > 85).view(np.int8)
    trits += (q > 170).view(np.int8)
    trits -= 1
    out[...] = trits
    out *= halves(blocks, 52)


def _tq2_0(blocks: U8, out: F32) -> None:
    """[64 bytes of 2-bit | d f16]: d * (q - 1)."""
    q = bit_fields(blocks[:, :64].reshape(-1, 2, 32), 2).reshape(-1, 256).view(np.int8)
    q -= 1
    out[...] = q
    out *= halves(blocks, 64)


FILLS: Fills = {"tq1_0": _tq1_0, "tq2_0": _tq2_0}
