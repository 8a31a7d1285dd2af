"""What the machine can do at most, measured: the figures that achieved rates are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

READ_BYTES = 256 << 20
"""More than any cache holds."""
_CHUNK = 1 << 17
"""Elements of 8 bytes per call: 1 MB, so that the interpreter costs nothing beside the read."""
_MATRIX = 1024
_ROUNDS = 5


@runtime_checkable
class MeasuresCeilings(Protocol):
    """A device that can measure its own limits with the instructions that its kernels use."""

    def ceilings(self, threads: int) -> Mapping[str, float]:
        """`read_bytes_per_s`, `operations_per_s` and any others, measured now with `threads` threads."""


def measure_ceilings(device: object, threads: int) -> dict[str, float]:
    """The device's own figures where it measures them, numpy's otherwise.

    read_bytes_per_s   memory read by `threads` threads
    operations_per_s   multiplications and additions; numpy's are those of an f32 matrix product
    """
    numpy_figures = {
        "read_bytes_per_s": _read_bandwidth(threads),
        "operations_per_s": _matrix_rate(threads),
    }
    if isinstance(device, MeasuresCeilings):
        return numpy_figures | dict(device.ceilings(threads))
    return numpy_figures


def _read_bandwidth(threads: int) -> float:
    """Bytes per second of the best of several rounds; every thread reads its own part of one buffer."""
    import numpy as np

    words = np.arange(READ_BYTES // 8, dtype=np.uint64)
    parts = np.array_split(words, threads)

    def read(part: np.ndarray) -> None:
        for start in range(0, len(part), _CHUNK):
            np.bitwise_or.reduce(part[start : start + _CHUNK])

    with ThreadPoolExecutor(threads) as pool:
        return words.nbytes / _best(lambda: list(pool.map(read, parts)))


def _matrix_rate(threads: int) -> float:
    """Operations per second of a square f32 product of numpy held to `threads` threads."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    a = rng.standard_normal((_MATRIX, _MATRIX), dtype=np.float32)
    out = np.empty_like(a)
    with threadpool_limits(threads):
        np.matmul(a, a, out=out)  # starts the threads
        return 2 * _MATRIX**3 / _best(lambda: np.matmul(a, a, out=out))


def _best(action: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs: what others take from the machine is not its limit."""
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
