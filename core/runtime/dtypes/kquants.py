"""Decoders of the k-quants, 256 elements a block in groups with scales of their own: q2_k ... q6_k."""

from __future__ import annotations

import numpy as np

from runtime.dtypes.unpack import F32, U8, Fills, bit_fields, field, halves, nibbles, scale_groups


def _q2_k(blocks: U8, out: F32) -> None:
    """[16 bytes: scale low, minimum high nibble | 64 bytes of 2-bit | d f16 | dmin f16]: d * s * q - dmin * m."""
    packed = blocks[:, :16]
    out[...] = bit_fields(blocks[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 256)
    scale_groups(out, halves(blocks, 80) * (packed & 15), halves(blocks, 82) * (packed >> 4))


def _q3_k(blocks: U8, out: F32) -> None:
    """[32 bytes of high bits | 64 bytes of 2-bit | 12 bytes of 6-bit scales | d f16]: d * (s - 32) * (q - 4 * !high).

    Scale i has its low four bits in byte i % 8 (nibble i // 8) and its high two bits in byte 8 + i % 4, field i // 4.
    """
    scales = bit_fields(blocks[:, 104:108], 2).reshape(-1, 16)
    scales <<= 4
    scales |= nibbles(blocks[:, 96:104]).reshape(-1, 16)
    q = bit_fields(blocks[:, :32], 1).reshape(-1, 256)
    q <<= 2
    q |= bit_fields(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 256)
    out[...] = q
    out -= 4
    scale_groups(out, halves(blocks, 108) * (scales.view(np.int8) - np.int8(32)))


def _scales_and_minima(packed: U8) -> tuple[U8, U8]:
    """Eight 6-bit scales and eight 6-bit minima out of 12 bytes, each uint8 [n, 8].

    Bytes 0-3 hold scales 0-3, bytes 4-7 minima 0-3, in their low six bits. Bytes 8-11 hold the low nibbles of scales
    4-7 (low) and of minima 4-7 (high), whose upper two bits are the top bits of bytes 0-3 and 4-7.
    """
    first, last = packed[:, :8], packed[:, 8:12]
    low, top = first & 63, (first >> 2) & 48
    scales = np.concatenate([low[:, :4], top[:, :4] | (last & 15)], axis=1)
    minima = np.concatenate([low[:, 4:], top[:, 4:] | (last >> 4)], axis=1)
    return scales, minima


def _q4_k(blocks: U8, out: F32) -> None:
    """[d f16 | dmin f16 | 12 bytes of scales and minima | 128 bytes of nibbles]: d * s * q - dmin * m."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    out[...] = nibbles(blocks[:, 16:144].reshape(-1, 4, 32)).reshape(-1, 256)
    scale_groups(out, halves(blocks, 0) * scales, halves(blocks, 2) * minima)


def _q5_k(blocks: U8, out: F32) -> None:
    """As q4_k with 32 bytes of fifth bits before the nibbles: bit g of byte i belongs to element i of group g."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    q = bit_fields(blocks[:, 16:48], 1).reshape(-1, 256)
    q <<= 4
    q |= nibbles(blocks[:, 48:176].reshape(-1, 4, 32)).reshape(-1, 256)
    out[...] = q
    scale_groups(out, halves(blocks, 0) * scales, halves(blocks, 2) * minima)


def _q6_k(blocks: U8, out: F32) -> None:
    """[128 bytes of nibbles | 64 bytes of high 2-bit | 16 int8 scales | d f16]: d * s * (q - 32)."""
    q = bit_fields(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 256)
    q <<= 4
    q |= nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 256)
    signed = q.view(np.int8)
    signed -= 32
    out[...] = signed
    scale_groups(out, halves(blocks, 208) * field(blocks, 192, 16, "i1"))


FILLS: Fills = {"q2_k": _q2_k, "q3_k": _q3_k, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k}
