"""Speed of the native linears, per format and number of rows, beside the ceilings measured in the same run.

    python benchmarks/native_linear.py --library build/libruntime_cpu.so --isa avx512-bf16 --threads 1

Two figures per case: operations per second (two per multiply-add) against the byte dot product's own peak, and bytes of
weights per second against plain reading. One row is measured on a weight too large for any cache. Every repetition
measures all cases and both ceilings; medians are printed. Times are those of the computing threads, so that other
processes on the machine disturb caches and memory, but are not counted themselves.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

FORMATS = {
    "f32": (0, 1, 4),
    "f16": (1, 1, 2),
    "bf16": (30, 1, 2),
    "q4_0": (2, 32, 18),
    "q4_1": (3, 32, 20),
    "q5_0": (6, 32, 22),
    "q5_1": (7, 32, 24),
    "q8_0": (8, 32, 34),
    "q2_k": (10, 256, 84),
    "q3_k": (11, 256, 110),
    "q4_k": (12, 256, 144),
    "q5_k": (13, 256, 176),
    "q6_k": (14, 256, 210),
    "iq4_nl": (20, 32, 18),
    "iq4_xs": (23, 256, 136),
    "mxfp4": (39, 32, 17),
}
"""GGML type id, elements and bytes of a block."""

STREAM_BYTES = 96 << 20


def load(path: Path) -> ctypes.CDLL:
    """The library with the argument types of its measuring functions."""
    library = ctypes.CDLL(str(path.resolve()))
    integer, long, address = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    signatures = {
        "rt_packed_bytes": [integer, integer, long, long],
        "rt_measure_linear": [
            *(integer, integer, address, long, long, address, long, address, integer, integer),
        ],
        "rt_measure_prepare": [integer, integer, address, long, long, integer],
        "rt_measure_pack": [integer, integer, address, long, long, address, integer],
        "rt_measure_dot_peak": [integer],
        "rt_measure_read": [address, long, integer],
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_double
    library.rt_packed_bytes.restype = long
    library.rt_isa_name.restype = ctypes.c_char_p
    return library


def aligned(num_bytes: int) -> np.ndarray:
    """Zeros at a multiple of 64."""
    raw = np.zeros(num_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + num_bytes]


class Case:
    """One format with its packed weight [n, k] and activations."""

    def __init__(self, library: ctypes.CDLL, isa: int, name: str, n: int, k: int, max_rows: int) -> None:
        self.library, self.isa, self.name, self.n, self.k = library, isa, name, n, k
        self.format, block, block_bytes = FORMATS[name]
        rng = np.random.default_rng(0)
        # random codes; as scales, bytes below 64 are half floats of moderate size
        self.raw = rng.integers(0, 64, n * k // block * block_bytes, dtype=np.uint8)
        self.packed = aligned(library.rt_packed_bytes(isa, self.format, n, k))
        self.x = rng.standard_normal((max_rows, k)).astype(np.float32)
        self.y = np.zeros((max_rows, n), np.float32)

    def pack_s(self, threads: int) -> float:
        """Seconds of packing the weight."""
        return float(
            self.library.rt_measure_pack(
                *(self.isa, self.format, self.raw.ctypes.data, self.n, self.k, self.packed.ctypes.data, threads)
            )
        )

    def linear_s(self, rows: int, threads: int) -> float:
        """Seconds of one linear on `rows` prepared rows."""
        repeat = max(1, int(2e9 / (2 * rows * self.n * self.k)))
        return float(
            self.library.rt_measure_linear(
                *(self.isa, self.format, self.packed.ctypes.data, self.n, self.k, self.x.ctypes.data, rows),
                *(self.y.ctypes.data, min(repeat, 20), threads),
            )
        )


def measure(library: ctypes.CDLL, isa: int, name: str, rows: list[int], threads: int, repeat: int, size: int) -> str:
    """One line of the table."""
    many = Case(library, isa, name, size, size, max(rows))
    bytes_per_row = many.packed.size / size
    stream = Case(library, isa, name, int(STREAM_BYTES / bytes_per_row) // 16 * 16, size, 1)
    median: Callable[[list[float]], float] = statistics.median
    pack, gemv, share_read, peaks = [], [], [], []
    speed: dict[int, list[float]] = {count: [] for count in rows}
    share: dict[int, list[float]] = {count: [] for count in rows}
    many.pack_s(1)
    stream.pack_s(1)
    for _ in range(repeat):
        pack.append(stream.raw.size / stream.pack_s(threads) / 1e9)
        read = library.rt_measure_read(stream.packed.ctypes.data, stream.packed.size, threads) / 1e9
        gemv.append(stream.packed.size / stream.linear_s(1, threads) / 1e9)
        share_read.append(gemv[-1] / read)
        peak = library.rt_measure_dot_peak(isa) * threads / 1e9
        peaks.append(peak)
        for count in rows:
            speed[count].append(2 * count * size * size / many.linear_s(count, threads) / 1e9)
            share[count].append(speed[count][-1] / peak)
    cells = [f"{median(speed[count]):6.0f} {100 * median(share[count]):3.0f} %" for count in rows]
    return (
        f"{name:8}{median(pack):7.1f}{median(gemv):8.1f} {100 * median(share_read):4.0f} %   "
        + "   ".join(cells)
        + f"   {median(peaks):6.0f}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--isa", default="avx512-bf16")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--rows", default="1,2,4,8,32,512")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--size", type=int, default=2048)
    options = parser.parse_args()
    library = load(options.library)
    names = [library.rt_isa_name(i).decode() for i in range(library.rt_isa_count())]
    rows = [int(count) for count in options.rows.split(",")]
    print(
        f"{options.isa}, {options.threads} threads, n = k = {options.size}; GB/s of file bytes packed, of weights read"
    )
    head = "   ".join(f"{f'M={count}':>12}" for count in rows)
    print(f"{'':8}{'pack':>7}{'GEMV':>8} {'read':>6}   {head}   {'peak GOPS':>6}")
    for name in options.formats.split(","):
        line = measure(library, names.index(options.isa), name, rows, options.threads, options.repeat, options.size)
        print(line, flush=True)


if __name__ == "__main__":
    main()
