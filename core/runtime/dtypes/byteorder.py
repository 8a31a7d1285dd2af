"""Big-endian GGUF tensor data to little-endian.

A plain format is swapped element by element. Inside a block, the fields that GGML reads as 16- or 32-bit words are
swapped and bytes stay where they are. For q4_0, q8_0, q4_k, q6_k, mxfp4 and nvfp4 this is the layout that the `gguf`
package's converter (`gguf_convert_endian`) defines; it supports no other block format, and for those the words are
the ones that llama.cpp's own quantisers write (`ggml-common.h`, `ggml-quants.c`). The `gguf` package's *writer* is
different: it leaves block data little-endian in a big-endian file, so such a file holds no big-endian blocks at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes.format import Format
from runtime.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WORDS: dict[str, tuple[tuple[int, int, int], ...]] = {
    # format: (first byte, bytes per word, number of words), ...
    "q4_0": ((0, 2, 1),),
    "q4_1": ((0, 2, 2),),
    "q5_0": ((0, 2, 1), (2, 4, 1)),
    "q5_1": ((0, 2, 2), (4, 4, 1)),
    "q8_0": ((0, 2, 1),),
    "q2_k": ((80, 2, 2),),
    "q3_k": ((108, 2, 1),),
    "q4_k": ((0, 2, 2),),
    "q5_k": ((0, 2, 2),),
    "q6_k": ((208, 2, 1),),
    "iq1_s": ((0, 2, 1), (34, 2, 8)),
    "iq1_m": ((48, 2, 4),),
    "iq2_xxs": ((0, 2, 1), (2, 4, 16)),
    "iq2_xs": ((0, 2, 33),),
    "iq2_s": ((0, 2, 1),),
    "iq3_xxs": ((0, 2, 1), (66, 4, 8)),
    "iq3_s": ((0, 2, 1),),
    "iq4_nl": ((0, 2, 1),),
    "iq4_xs": ((0, 2, 2),),
    "tq1_0": ((52, 2, 1),),
    "tq2_0": ((64, 2, 1),),
    "mxfp4": (),
    "nvfp4": (),
    "f8_e4m3_g128": ((0, 4, 1),),
}


def byteswap(fmt: Format, data: Any) -> bytes:
    """Swap the byte order of tensor data in `fmt`; swapping twice gives the data back.

    `data` is any buffer of whole blocks. Raises InvalidArgument for a partial block, Unsupported for a block format
    whose words are not known here.
    """
    import numpy as np

    raw = np.frombuffer(data, dtype=np.uint8)
    if raw.size % fmt.block_bytes:
        raise InvalidArgument(
            f"{raw.size} bytes cannot be byte-swapped as {fmt.name}: "
            f"they are no whole number of blocks of {fmt.block_bytes} bytes"
        )
    if not fmt.is_quantized:
        return bytes(raw.view(f"u{fmt.block_bytes}").byteswap().data)
    words = _WORDS.get(fmt.name)
    if words is None:
        raise Unsupported(
            f"the byte order of {fmt.name} blocks cannot be swapped: their words are not known",
            remedy="convert the file to little-endian with the program that made it",
        )
    blocks: NDArray[np.uint8] = raw.reshape(-1, fmt.block_bytes).copy()
    for start, width, count in words:
        field = blocks[:, start : start + width * count].reshape(-1, count, width)
        blocks[:, start : start + width * count] = field[:, :, ::-1].reshape(-1, count * width)
    return bytes(blocks.data)
