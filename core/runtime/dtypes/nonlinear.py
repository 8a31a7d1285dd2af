"""Decoders of the 4-bit formats with a non-linear codebook: iq4_nl and iq4_xs."""

from __future__ import annotations

import numpy as np

from runtime.dtypes.codebook import NibbleCodebook
from runtime.dtypes.unpack import F32, U8, Fills, halves, interleaved, scale_groups

CODEBOOK = NibbleCodebook((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))
"""`kvalues_iq4nl` of llama.cpp."""


def _iq4_nl(blocks: U8, out: F32) -> None:
    """[d f16 | 16 bytes of nibbles]: d * codebook[q]."""
    out[...] = CODEBOOK.look_up(blocks[:, 2:18]).reshape(-1, 32)
    out *= halves(blocks, 0)


def _iq4_xs(blocks: U8, out: F32) -> None:
    """[d f16 | scales: u16 of high 2-bit, 4 bytes of low nibbles | 128 bytes of nibbles]: d * (s - 32) * code.

    Groups of 32, element i and i + 16 in byte i of theirs.
    """
    scales = interleaved(blocks[:, 2:4], 2)
    scales <<= 4
    scales |= interleaved(blocks[:, 4:8], 4)
    signed = scales.view(np.int8)
    signed -= 32
    out[...] = CODEBOOK.look_up(blocks[:, 8:136].reshape(-1, 8, 16)).reshape(-1, 256)
    scale_groups(out, halves(blocks, 0) * signed)


FILLS: Fills = {"iq4_nl": _iq4_nl, "iq4_xs": _iq4_xs}
