"""The block formats of GGUF: names, GGML type ids and block geometry; their decoders load with their first use.

Geometry and layouts are those of llama.cpp's `ggml-common.h`, values those of the `gguf` package.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from runtime.dtypes.format import Format

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK_ELEMENTS = 1 << 15
"""Elements decoded at a time: 128 KiB of float32 and its temporaries stay in a core's second-level cache."""


@dataclass(frozen=True)
class BlockDecoder:
    """Decodes one block format through `FILLS[name]` of the module `runtime.dtypes.<family>`.

    A fill takes uint8 [n, block_bytes] and writes float32 [n, group_size]. Scales that are infinite or not a number
    are decoded like any other, without a warning: whether a weight may be one is not for a decoder to judge.
    """

    name: str
    family: str
    group_size: int

    def __call__(self, blocks: NDArray[np.uint8]) -> NDArray[Any]:
        """Decode uint8 [num_blocks, block_bytes] to float32 [num_blocks, group_size]."""
        import numpy as np

        fill = import_module(f"runtime.dtypes.{self.family}").FILLS[self.name]
        num_blocks = len(blocks)
        out = np.empty((num_blocks, self.group_size), np.float32)
        step = CHUNK_ELEMENTS // self.group_size
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            for start in range(0, num_blocks, step):
                fill(blocks[start : start + step], out[start : start + step])
        return out


def _block(name: str, ggml_type: int, group_size: int, block_bytes: int, family: str) -> Format:
    return Format(name, "block", group_size, block_bytes, BlockDecoder(name, family, group_size), ggml_type)


BLOCKS = (
    _block("q4_0", 2, 32, 18, "legacy"),
    _block("q4_1", 3, 32, 20, "legacy"),
    _block("q5_0", 6, 32, 22, "legacy"),
    _block("q5_1", 7, 32, 24, "legacy"),
    _block("q8_0", 8, 32, 34, "legacy"),
    _block("q2_k", 10, 256, 84, "kquants"),
    _block("q3_k", 11, 256, 110, "kquants"),
    _block("q4_k", 12, 256, 144, "kquants"),
    _block("q5_k", 13, 256, 176, "kquants"),
    _block("q6_k", 14, 256, 210, "kquants"),
    _block("iq2_xxs", 16, 256, 66, "iquants"),
    _block("iq2_xs", 17, 256, 74, "iquants"),
    _block("iq3_xxs", 18, 256, 98, "iquants"),
    _block("iq1_s", 19, 256, 50, "iquants"),
    _block("iq4_nl", 20, 32, 18, "nonlinear"),
    _block("iq3_s", 21, 256, 110, "iquants"),
    _block("iq2_s", 22, 256, 82, "iquants"),
    _block("iq4_xs", 23, 256, 136, "nonlinear"),
    _block("iq1_m", 29, 256, 56, "iquants"),
    _block("tq1_0", 34, 256, 54, "ternary"),
    _block("tq2_0", 35, 256, 66, "ternary"),
    _block("mxfp4", 39, 32, 17, "microscaling"),
    _block("nvfp4", 40, 64, 36, "microscaling"),
)
