"""How block formats lie on the device: every field of a block in a plane of its own, in units of 32 elements.

A GGUF block mixes scales and quants in 17 to 210 bytes, so that no field is aligned. The planes hold the same bits,
each field contiguous along a row, and one kernel template reads all formats:

    lo     low bits. 8: a byte per element. 4 or 2: int32 words, as many per unit as bits per element; the fields of a
           word, lowest first, are parts 0, 1 ... of the unit, a part being as many neighbours as a unit has words:

               4 bits   word 0   | 28 | 24 | 20 | 16 | 12 |  8 |  4 |  0 |    one load of 16 bytes brings a unit to a
                        word 1   | 29 | 25 | 21 | 17 | 13 |  9 |  5 |  1 |    thread; no code has to leave its place
                        word 2   | 30 | 26 | 22 | 18 | 14 | 10 |  6 |  2 |    but by shifts that a whole word shares
                        word 3   | 31 | 27 | 23 | 19 | 15 | 11 |  7 |  3 |

    hi     high bits, int32 words: those of word w lie as its fields do, from bit (w * hi_bits) % lo_bits of word
           (w * hi_bits) // lo_bits on; one shift brings those of every other field next to their low bits
    scale  one per group: f16, an exponent byte, or int8 under an f16 of 256 elements (`super`)
    low    what is added (f16), or subtracted (int8 under an f16): the minimum of a group

Element = scale * (code - offset) + minimum, where code = lo | hi << lo_bits, or codebook[lo].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

UNIT = 32
SUPER = 256

ScaleKind = Literal["half", "super", "exponent", "float8"]
"""float8: the codes themselves are floats (e4m3), under a float32 scale of 128."""
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""`kvalues_iq4nl` of llama.cpp."""
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the sixteen e2m1 values (OCP Microscaling Formats 1.0); the scale is halved in turn."""


@dataclass(frozen=True)
class PlaneLayout:
    """The planes of one block format."""

    name: str
    block_elements: int
    lo_bits: int
    hi_bits: int = 0
    offset: int = 0
    group: int = 32
    scale: ScaleKind = "half"
    has_minimum: bool = False
    codebook: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Elements of a part of a unit: those that the words of the unit hold in one field."""
        return UNIT if self.lo_bits == 8 else self.lo_bits

    @property
    def parts(self) -> int:
        """A unit is read in that many parts."""
        return UNIT // self.width

    @property
    def groups_per_unit(self) -> int:
        """Scales of 32 elements; where a scale is for more of them, it is not by units that they are found."""
        return max(1, UNIT // self.group)


_LAYOUTS = (
    PlaneLayout("q4_0", 32, 4, offset=8),
    PlaneLayout("q4_1", 32, 4, has_minimum=True),
    PlaneLayout("q5_0", 32, 4, 1, offset=16),
    PlaneLayout("q5_1", 32, 4, 1, has_minimum=True),
    PlaneLayout("q8_0", 32, 8),
    PlaneLayout("q2_k", 256, 2, group=16, scale="super", has_minimum=True),
    PlaneLayout("q3_k", 256, 2, 1, offset=4, group=16, scale="super"),
    PlaneLayout("q4_k", 256, 4, scale="super", has_minimum=True),
    PlaneLayout("q5_k", 256, 4, 1, scale="super", has_minimum=True),
    PlaneLayout("q6_k", 256, 4, 2, offset=32, group=16, scale="super"),
    PlaneLayout("iq4_nl", 32, 4, codebook=IQ4_NL),
    PlaneLayout("iq4_xs", 256, 4, scale="super", codebook=IQ4_NL),
    PlaneLayout("mxfp4", 32, 4, scale="exponent", codebook=E2M1),
    PlaneLayout("f8_e4m3_g128", 128, 8, group=128, scale="float8"),
)
FLOAT8 = tuple(layout.name for layout in _LAYOUTS if layout.scale == "float8")
"""Formats for chips that convert 8-bit floats."""
LAYOUTS: Mapping[str, PlaneLayout] = {layout.name: layout for layout in _LAYOUTS}
"""Block formats that kernels read, by name."""
