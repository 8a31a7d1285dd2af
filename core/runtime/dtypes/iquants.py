"""Decoders of the grid formats, 256 elements a block, whose codes name whole rows of a codebook: iq1 ... iq3."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.dtypes import grids
from runtime.dtypes.unpack import F32, U8, Fills, field, halves, interleaved, scale_groups

_DELTA = np.float32(0.125)
_SEVEN_BITS = np.array([0, 7, 14, 21], dtype=np.uint32)


@cache
def _sign_masks() -> NDArray[np.uint64]:
    """Sign byte to eight bytes, 0xff where its bit is set (element 0 is bit 0): uint64 [256]."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    masks: NDArray[np.uint64] = (bits * np.uint8(255)).view(np.uint64).reshape(-1)
    return masks


@cache
def _even_sign_masks() -> NDArray[np.uint64]:
    """As `_sign_masks` for seven stored bits; the eighth makes the number of minus signs even: uint64 [128]."""
    codes = np.arange(128)
    parity = sum((codes >> bit) & 1 for bit in range(7)) & 1
    masks: NDArray[np.uint64] = _sign_masks()[codes | (parity << 7)]
    return masks


def _put_signed(out: F32, rows: NDArray[np.uint64], masks: NDArray[np.uint64]) -> None:
    """Write eight elements per uint64 of `rows`, negated where `masks` is 0xff, to float32 [n, 256]."""
    rows ^= masks
    values = rows.view(np.int8)
    values -= masks.view(np.int8)  # two's complement: -v == ~v + 1
    out[...] = values.reshape(out.shape)


def _iq2_xxs(blocks: U8, out: F32) -> None:
    """[d f16 | 8 x (4 row bytes, u32: four 7-bit signs, 4-bit scale)]: d * (s + 1/2) / 4 * row, groups of 32."""
    words = field(blocks, 2, 16, "<u4").reshape(-1, 8, 2)
    signs = words[:, :, 1]
    index = field(blocks, 2, 64, "u1").reshape(-1, 8, 8)[:, :, :4]
    masks = _even_sign_masks()[(signs[:, :, None] >> _SEVEN_BITS) & 127]
    _put_signed(out, grids.rows("iq2_xxs")[index], masks)
    scale_groups(out, halves(blocks, 0) * (np.float32(0.5) + (signs >> 28).astype(np.float32)) * np.float32(0.25))


def _iq2_xs(blocks: U8, out: F32) -> None:
    """[d f16 | 32 u16: 9-bit row, 7-bit signs | 8 bytes of 4-bit scales]: d * (s + 1/2) / 4 * row, groups of 16."""
    codes = field(blocks, 2, 32, "<u2")
    _put_signed(out, grids.rows("iq2_xs")[codes & 511], _even_sign_masks()[codes >> 9])
    scales = interleaved(blocks[:, 66:74], 4)
    scale_groups(out, halves(blocks, 0) * (np.float32(0.5) + scales) * np.float32(0.25))


def _iq2_s(blocks: U8, out: F32) -> None:
    """[d f16 | 32 row bytes | 32 sign bytes | 8 bytes of high 2-bit | 8 bytes of 4-bit scales], values as iq2_xs."""
    index = interleaved(blocks[:, 66:74], 2).astype(np.uint16) << 8
    index |= blocks[:, 2:34]
    _put_signed(out, grids.rows("iq2_s")[index], _sign_masks()[blocks[:, 34:66]])
    scales = interleaved(blocks[:, 74:82], 4)
    scale_groups(out, halves(blocks, 0) * (np.float32(0.5) + scales) * np.float32(0.25))


def _iq3_xxs(blocks: U8, out: F32) -> None:
    """[d f16 | 64 row bytes | 8 u32: four 7-bit signs, 4-bit scale]: d * (s + 1/2) / 2 * row of 4, groups of 32."""
    signs = field(blocks, 66, 8, "<u4")
    masks = _even_sign_masks()[(signs[:, :, None] >> _SEVEN_BITS) & 127].reshape(-1, 32)
    _put_signed(out, grids.rows("iq3_xxs")[blocks[:, 2:66]].view(np.uint64), masks)
    scale_groups(out, halves(blocks, 0) * (np.float32(0.5) + (signs >> 28).astype(np.float32)) * np.float32(0.5))


def _iq3_s(blocks: U8, out: F32) -> None:
    """[d f16 | 64 row bytes | 8 bytes of ninth bits | 32 sign bytes | 4 bytes of 4-bit scales]: d * (2 s + 1) * row."""
    index = interleaved(blocks[:, 66:74], 1).astype(np.uint16) << 8
    index |= blocks[:, 2:66]
    _put_signed(out, grids.rows("iq3_s")[index].view(np.uint64), _sign_masks()[blocks[:, 74:106]])
    scale_groups(out, halves(blocks, 0) * (1 + 2 * interleaved(blocks[:, 106:110], 4)))


def _put_shifted(out: F32, index: NDArray[Any], is_down: NDArray[np.bool_], scales: F32) -> None:
    """Write scale * (row of {-1, 0, 1} + 1/8, or - 1/8 where `is_down` [n, 32 or 8]) to float32 [n, 256]."""
    out[...] = grids.rows("iq1_s")[index].view(np.int8).reshape(out.shape)
    scale_free = out.reshape(*is_down.shape, -1)
    scale_free += np.where(is_down, -_DELTA, _DELTA)[:, :, None]
    scale_groups(out, scales)


def _iq1_s(blocks: U8, out: F32) -> None:
    """[d f16 | 32 row bytes | 8 u16: four high 3-bit, 3-bit scale, direction]: d * (2 s + 1) * (row +- 1/8)."""
    high = field(blocks, 34, 8, "<u2")
    shifts = np.array([0, 3, 6, 9], dtype=np.uint16)
    index = (((high[:, :, None] >> shifts) & 7) << 8).reshape(-1, 32)
    index |= blocks[:, 2:34]
    _put_shifted(out, index, high >= 0x8000, halves(blocks, 0) * (2 * ((high >> 12) & 7) + 1))


def _iq1_m(blocks: U8, out: F32) -> None:
    """[32 row bytes | 16 bytes of nibbles: high 3-bit, direction | 4 u16: four 3-bit scales, a nibble of d].

    The f16 d is spread over the top nibbles of the four words, its lowest nibble first.
    """
    words = field(blocks, 48, 4, "<u2")
    parts = (words & 0xF000) >> np.array([12, 8, 4, 0], dtype=np.uint16)
    d = np.bitwise_or.reduce(parts, axis=1, keepdims=True).view(np.float16).astype(np.float32)
    scales = ((words[:, :, None] >> np.array([0, 3, 6, 9], dtype=np.uint16)) & 7).reshape(-1, 16)
    high = interleaved(blocks[:, 32:48], 4)
    index = (high & 7).astype(np.uint16) << 8
    index |= blocks[:, :32]
    _put_shifted(out, index, high >= 8, d * (2 * scales + 1))


FILLS: Fills = {
    "iq1_s": _iq1_s,
    "iq1_m": _iq1_m,
    "iq2_xxs": _iq2_xxs,
    "iq2_xs": _iq2_xs,
    "iq2_s": _iq2_s,
    "iq3_xxs": _iq3_xxs,
    "iq3_s": _iq3_s,
}
