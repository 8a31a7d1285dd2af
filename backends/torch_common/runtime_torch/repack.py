"""From GGUF blocks, as stored, to planes (see `planes`), with torch operations on the device itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from runtime_torch.planes import LAYOUTS, PlaneLayout

Tensor: TypeAlias = torch.Tensor
Fields = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None", "Tensor | None"]
"""Codes uint8 [blocks, elements], scales, scales of scales or None, minima or None, scales of minima or None."""


def repack(fmt: str, raw: Tensor, num_rows: int, num_columns: int) -> dict[str, Tensor]:
    """Planes of a matrix [num_rows, num_columns] stored as uint8 blocks: name -> tensor [num_rows, ...].

    lo int32 (int8 or f8_e4m3 for 8-bit codes), hi int32, scale f16 | uint8 | int8 | f32, super f16, low f16 | int8,
    low_super f16.
    """
    layout = LAYOUTS[fmt]
    blocks = raw.reshape(-1, raw.numel() * layout.block_elements // (num_rows * num_columns))
    codes, scale, above, low, low_above = _SPLIT[fmt](blocks)
    planes = _pack_codes(layout, codes)
    planes |= {"scale": scale, "super": above, "low": low, "low_super": low_above}
    return {name: t.reshape(num_rows, -1).contiguous() for name, t in planes.items() if t is not None}


def _pack_codes(layout: PlaneLayout, codes: Tensor) -> dict[str, Tensor]:
    if layout.scale == "float8":
        return {"lo": codes.contiguous().view(torch.float8_e4m3fn)}
    if layout.lo_bits == 8:
        return {"lo": codes.view(torch.int8)}
    # bytes of words, fields of a byte, words: element k of a unit is field k // words of word k % words
    fields = codes.reshape(-1, 4, 8 // layout.lo_bits, layout.lo_bits)
    lo = torch.zeros_like(fields[:, :, 0])
    hi = torch.zeros((len(fields), layout.hi_bits, 4), dtype=torch.uint8, device=codes.device)
    for field in range(fields.shape[2]):
        start = field * layout.lo_bits
        lo |= (fields[:, :, field] & ((1 << layout.lo_bits) - 1)) << start
        for word in range(layout.lo_bits if layout.hi_bits else 0):
            index, shift = divmod(word * layout.hi_bits, layout.lo_bits)
            hi[:, index] |= (fields[:, :, field, word] >> layout.lo_bits) << (start + shift)
    planes = {"lo": lo.transpose(1, 2), "hi": hi} if layout.hi_bits else {"lo": lo.transpose(1, 2)}
    return {name: plane.contiguous().view(torch.int32) for name, plane in planes.items()}


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of each block: [n, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16)


def _nibbles(packed: Tensor) -> Tensor:
    """Low, then high nibbles: [..., w] to [..., 2, w]."""
    return torch.stack((packed & 15, packed >> 4), -2)


def _fields(packed: Tensor, bits: int) -> Tensor:
    """Fields of `bits` bits, lowest first: [..., w] to [..., 8 / bits, w]."""
    mask = (1 << bits) - 1
    return torch.stack([(packed >> shift) & mask for shift in range(0, 8, bits)], -2)


def _bits(packed: Tensor) -> Tensor:
    """All bits of bytes in order: [n, w] to [n, 8 w]."""
    return torch.stack([(packed >> i) & 1 for i in range(8)], -1).reshape(len(packed), -1)


def _legacy(start: int, *, high: int | None = None, low: int | None = None) -> Callable[[Tensor], Fields]:
    def split(blocks: Tensor) -> Fields:
        codes = _nibbles(blocks[:, start : start + 16]).reshape(-1, 32)
        if high is not None:
            codes = codes | (_bits(blocks[:, high : high + 4]) << 4)
        return codes, _half(blocks, 0), None, None if low is None else _half(blocks, low), None

    return split


def _q8_0(blocks: Tensor) -> Fields:
    return blocks[:, 2:34].contiguous(), _half(blocks, 0), None, None, None


def _q2_k(blocks: Tensor) -> Fields:
    packed = blocks[:, :16]
    codes = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 256)
    return codes, _signed(packed & 15), _half(blocks, 80), _signed(packed >> 4), _half(blocks, 82)


def _q3_k(blocks: Tensor) -> Fields:
    high = _fields(blocks[:, 104:108], 2).reshape(-1, 16) << 4
    scales = _signed(high | _nibbles(blocks[:, 96:104]).reshape(-1, 16)) - 32
    codes = _fields(blocks[:, :32], 1).reshape(-1, 256) << 2
    codes = codes | _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 256)
    return codes, scales, _half(blocks, 108), None, None


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and minima out of 12 bytes, as llama.cpp packs them."""
    first, last = packed[:, :8], packed[:, 8:12]
    low, top = first & 63, (first >> 2) & 48
    scales = torch.cat([low[:, :4], top[:, :4] | (last & 15)], 1)
    minima = torch.cat([low[:, 4:], top[:, 4:] | (last >> 4)], 1)
    return _signed(scales), _signed(minima)


def _q4_k(blocks: Tensor) -> Fields:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    codes = _nibbles(blocks[:, 16:144].reshape(-1, 4, 32)).reshape(-1, 256)
    return codes, scales, _half(blocks, 0), minima, _half(blocks, 2)


def _q5_k(blocks: Tensor) -> Fields:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    codes = _nibbles(blocks[:, 48:176].reshape(-1, 4, 32)).reshape(-1, 256)
    codes = codes | (_fields(blocks[:, 16:48], 1).reshape(-1, 256) << 4)
    return codes, scales, _half(blocks, 0), minima, _half(blocks, 2)


def _q6_k(blocks: Tensor) -> Fields:
    codes = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 256)
    codes = codes | (_fields(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 256) << 4)
    return codes, _signed(blocks[:, 192:208]), _half(blocks, 208), None, None


def _iq4_xs(blocks: Tensor) -> Fields:
    high = torch.stack([(blocks[:, 2:4] >> i) & 3 for i in range(0, 8, 2)], -1).reshape(-1, 8) << 4
    low = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], -1).reshape(-1, 8)
    codes = _nibbles(blocks[:, 8:136].reshape(-1, 8, 16)).reshape(-1, 256)
    return codes, _signed(high | low) - 32, _half(blocks, 0), None, None


def _mxfp4(blocks: Tensor) -> Fields:
    return _nibbles(blocks[:, 1:17]).reshape(-1, 32), blocks[:, :1], None, None, None


def _float8(blocks: Tensor) -> Fields:
    return blocks[:, 4:], blocks[:, :4].contiguous().view(torch.float32), None, None, None


def _signed(packed: Tensor) -> Any:
    return packed.contiguous().view(torch.int8)


_SPLIT: dict[str, Callable[[Tensor], Fields]] = {
    "q4_0": _legacy(2),
    "q4_1": _legacy(4, low=2),
    "q5_0": _legacy(6, high=2),
    "q5_1": _legacy(8, high=4, low=2),
    "q8_0": _q8_0,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_nl": _legacy(2),
    "iq4_xs": _iq4_xs,
    "mxfp4": _mxfp4,
    "f8_e4m3_g128": _float8,
}
