"""Decoders of 4-bit floats (e2m1) under 8-bit scales: mxfp4 and nvfp4.

The codebook holds doubled values, so that they are integers; the scales are halved in turn.
Source: OCP Microscaling Formats (MX) Specification 1.0; `gguf` package for NVFP4's scales.
"""

from __future__ import annotations

import numpy as np

from runtime.dtypes.codebook import NibbleCodebook
from runtime.dtypes.unpack import F32, U8, Fills, scale_groups

CODEBOOK = NibbleCodebook((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12))
"""Twice the sixteen e2m1 values; negative zero is plain zero."""


def _half_powers() -> F32:
    """Scale byte e to 2 ** (e - 128), exact down to the subnormals 2 ** -128 and 2 ** -127; 255 is no NaN here."""
    powers: F32 = np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)
    return powers


def _half_e4m3() -> F32:
    """Scale byte to half of its unsigned e4m3 value (bias 7); the top bit is ignored, 0x7f counts as zero."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, np.ldexp(mantissa / 8.0, -6), np.ldexp(1 + mantissa / 8.0, exponent - 7))
    value[0x7F] = 0
    return (value / 2).astype(np.float32)


_HALF_POWERS = _half_powers()
_HALF_E4M3 = _half_e4m3()


def _mxfp4(blocks: U8, out: F32) -> None:
    """[exponent byte | 16 bytes of nibbles, element i and i + 16 in byte i]: 2 ** (e - 127) * e2m1."""
    out[...] = CODEBOOK.look_up(blocks[:, 1:17]).reshape(-1, 32)
    out *= _HALF_POWERS[blocks[:, :1]]


def _nvfp4(blocks: U8, out: F32) -> None:
    """[4 scale bytes | 4 groups of 8 bytes of nibbles, element i and i + 8 in byte i]: e4m3 * e2m1, groups of 16."""
    out[...] = CODEBOOK.look_up(blocks[:, 4:36].reshape(-1, 4, 8)).reshape(-1, 64)
    scale_groups(out, _HALF_E4M3[blocks[:, :4]])


FILLS: Fills = {"mxfp4": _mxfp4, "nvfp4": _nvfp4}
