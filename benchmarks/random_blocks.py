"""Random weights in every GGUF format: blocks of random codes whose scales give a wanted standard deviation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

POOL_BYTES = 32 << 20
"""Of a pool of random blocks; larger tensors repeat it. Rows of a vocabulary differ from each other up to this size."""
SAMPLE_BLOCKS = 512
"""Enough to measure a standard deviation within a few percent."""
JITTER = (0.75, 1.25)
"""Scales vary from block to block, as they do in real files."""

Bytes = NDArray[np.uint8]

# Where a block keeps its f16 scale, and for formats with a minimum: where that is, and how many scales it weighs, so
# that the middle of the codes stands for zero.
_SCALE_AT = {
    Type.Q4_0: 0,
    Type.Q4_1: 0,
    Type.Q5_0: 0,
    Type.Q5_1: 0,
    Type.Q8_0: 0,
    Type.Q2_K: 80,
    Type.Q3_K: 108,
    Type.Q4_K: 0,
    Type.Q5_K: 0,
    Type.Q6_K: 208,
    Type.IQ2_XXS: 0,
    Type.IQ2_XS: 0,
    Type.IQ2_S: 0,
    Type.IQ3_XXS: 0,
    Type.IQ3_S: 0,
    Type.IQ1_S: 0,
    Type.IQ4_NL: 0,
    Type.IQ4_XS: 0,
    Type.TQ1_0: 52,
    Type.TQ2_0: 64,
}
_MINIMUM = {
    Type.Q4_1: (2, -7.5),
    Type.Q5_1: (2, -15.5),
    Type.Q2_K: (82, 1.5),
    Type.Q4_K: (2, 7.5),
    Type.Q5_K: (2, 15.5),
}
_LOPSIDED = (Type.Q4_0, Type.Q5_0, Type.IQ4_NL)
"""Formats whose codes have a mean other than zero. In a model a mean of a tenth of the deviation is a common direction
that soon drowns all others, so scales have either sign, as those of quantised files have too."""
FORMATS: dict[str, Type] = {
    t.name.lower(): t for t in (Type.F32, Type.F16, Type.BF16, *_SCALE_AT, Type.IQ1_M, Type.MXFP4)
}
"""Formats that can be made, by their names in lower case."""


class Pools:
    """Random blocks by (format, standard deviation), made when first wanted; `pool_bytes` bounds each of them."""

    def __init__(self, seed: int = 0, pool_bytes: int = POOL_BYTES) -> None:
        self._rng = np.random.default_rng(seed)
        self._pool_bytes = pool_bytes
        self._pools: dict[tuple[Type, float], Bytes] = {}

    def tensor(self, kind: Type, shape: tuple[int, ...], std: float) -> RandomTensor:
        """A tensor of `shape` (outermost first) with elements of mean 0 and about this standard deviation."""
        key = (kind, float(f"{std:.3g}"))
        elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if shape[-1] % elements:
            raise ValueError(f"{kind.name} has blocks of {elements} elements; rows of {shape[-1]} do not hold them")
        if key not in self._pools:
            count = _prime_below(max(self._pool_bytes // block_bytes, 8))
            self._pools[key] = _blocks(self._rng, kind, count, std)
        pool = self._pools[key]
        nbytes = int(np.prod(shape)) // elements * block_bytes
        return RandomTensor(pool, int(self._rng.integers(len(pool))), nbytes)


class RandomTensor:
    """A tensor that is never whole in memory: blocks of a pool from a random one on, repeated up to `nbytes`."""

    def __init__(self, pool: Bytes, first: int, nbytes: int) -> None:
        self._pool = pool
        self._first = first
        self.nbytes = nbytes

    def tofile(self, file: BinaryIO) -> None:
        """Write it, as `numpy.ndarray.tofile` would: what `gguf.GGUFWriter.write_tensor_data` calls."""
        flat = np.ascontiguousarray(self._pool).data.cast("B")
        start, left = self._first * self._pool.shape[1], self.nbytes
        while left:
            part = flat[start : start + left]
            file.write(part)
            start, left = 0, left - len(part)


def _blocks(rng: np.random.Generator, kind: Type, count: int, std: float) -> Bytes:
    """`count` blocks [count, block_bytes]."""
    if kind in (Type.F32, Type.F16, Type.BF16):
        values = rng.standard_normal(count, dtype=np.float32) * np.float32(std)
        stored: Any = gguf.quants.quantize(values.reshape(1, -1), kind)
        return np.ascontiguousarray(stored).reshape(-1).view(np.uint8).reshape(count, -1)
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    _centre(kind, blocks)
    set_scale = _scale_setter(kind)
    sample = blocks[:SAMPLE_BLOCKS].copy()
    set_scale(sample, np.ones(len(sample), np.float32))
    unit = float(np.std(gguf.quants.dequantize(sample, kind), dtype=np.float64))
    scales = np.float32(std / unit) * rng.uniform(*JITTER, count).astype(np.float32)
    if kind in _LOPSIDED:
        scales *= rng.choice(np.array([-1, 1], np.float32), count)
    set_scale(blocks, scales)
    return blocks


def _centre(kind: Type, blocks: Bytes) -> None:
    """Make the mean zero: K-quants with minimums get the same bits for minimum and scale in every group."""
    if kind is Type.Q2_K:
        blocks[:, :16] = (blocks[:, :16] & 15) * 17
    elif kind in (Type.Q4_K, Type.Q5_K):
        blocks[:, 8:12] = blocks[:, 4:8]
        blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17
    elif kind is Type.TQ2_0:  # of two bits only 0, 1 and 2 have a meaning; 3 becomes 1, which stands for zero
        blocks ^= ((blocks & (blocks >> 1)) & 0x55) << 1
    elif kind is Type.Q8_0:  # quantisers make no -128
        blocks[blocks == 128] = 0


def _scale_setter(kind: Type) -> Callable[[Bytes, NDArray[np.float32]], None]:
    if kind is Type.IQ1_M:
        return _set_iq1_m
    if kind is Type.MXFP4:
        return _set_mxfp4
    return lambda blocks, scales: _set_half(kind, blocks, scales)


def _set_half(kind: Type, blocks: Bytes, scales: NDArray[np.float32]) -> None:
    at = _SCALE_AT[kind]
    blocks[:, at : at + 2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
    if kind in _MINIMUM:
        at, factor = _MINIMUM[kind]
        blocks[:, at : at + 2] = (scales * np.float32(factor)).astype(np.float16).view(np.uint8).reshape(-1, 2)


def _set_iq1_m(blocks: Bytes, scales: NDArray[np.float32]) -> None:
    """The f16 scale lies in the upper four bits of the four 16-bit words at the end of the block."""
    halves = scales.astype(np.float16).view(np.uint16)
    words = blocks[:, 48:56].copy().view(np.uint16)
    for i in range(4):
        words[:, i] = (words[:, i] & 0x0FFF) | (((halves >> (4 * i)) & 15) << 12)
    blocks[:, 48:56] = words.view(np.uint8)


def _set_mxfp4(blocks: Bytes, scales: NDArray[np.float32]) -> None:
    """The scale is a power of two in one byte; rounding it keeps the deviation within a factor of 1.4."""
    blocks[:, 0] = np.clip(np.round(np.log2(scales)) + 127, 1, 254).astype(np.uint8)


def _prime_below(limit: int) -> int:
    """The largest prime up to `limit`, so that repetitions of a pool never line up with rows."""
    for n in range(limit, 2, -1):
        if all(n % d for d in range(2, int(n**0.5) + 1)):
            return n
    return 2
