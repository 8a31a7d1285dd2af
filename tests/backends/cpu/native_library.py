"""Builds the native library for tests that call it without the rest of the backend."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime_cpu.native import load_library

ROOT = Path(__file__).resolve().parents[3]
ALIGNMENT = 64


def build(*options: str, name: str = "native-tests") -> Path:
    """The installed shared library, or one that is built in build/<name>, where a second run finds it up to date.

    RUNTIME_CPU_LIBRARY names one that is there already. With options for CMake it is always built. The test is skipped where there are no tools to build it.
    """
    if not options and (ready := os.environ.get("RUNTIME_CPU_LIBRARY")):
        return Path(ready)
    installed = None if options else load_library()
    if installed is not None:
        return installed.path
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", "-S", str(ROOT / "backends/cpu/csrc"), "-B", str(folder), "-DRT_TEST_VARIANTS=ON"]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side build once
        for command in ([*configure, *generator, *options], ["cmake", "--build", str(folder), "--parallel", "2"]):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}"
    return next(folder.glob("libruntime_cpu.*"))


def aligned(num_bytes: int) -> NDArray[np.uint8]:
    """Bytes at an address that is a multiple of a cache line; filled, so that whoever leaves a gap is found out."""
    raw = np.full(num_bytes + ALIGNMENT, 0xA5, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + num_bytes]


def pointer(array: NDArray[np.generic] | None) -> int | None:
    """Address for ctypes; None is the null pointer."""
    return None if array is None else array.ctypes.data


class NativeLinear:
    """`linear_api.cpp` with numpy arrays."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        integer, long, address = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
        library.rt_isa_name.argtypes = [integer]
        library.rt_isa_name.restype = ctypes.c_char_p
        library.rt_packed_bytes.argtypes = [integer, integer, long, long]
        library.rt_packed_bytes.restype = long
        library.rt_pack.argtypes = [integer, integer, address, long, long, address, integer]
        library.rt_pack.restype = None
        library.rt_linear.argtypes = [
            *(integer, integer, address, long, long, address, long, address, address, address),
            *(address, address, address, integer, integer),
        ]
        library.rt_linear.restype = None
        self._library = library
        self.isas: dict[str, int] = {
            library.rt_isa_name(i).decode(): i for i in range(library.rt_isa_count()) if library.rt_isa_usable(i)
        }

    def packed_bytes(self, isa: str, ggml_type: int, n: int, k: int) -> int:
        """Bytes of a packed weight [n, k]; 0 if there is no kernel."""
        return int(self._library.rt_packed_bytes(self.isas[isa], ggml_type, n, k))

    def pack(
        self, isa: str, ggml_type: int, raw: NDArray[np.uint8], n: int, k: int, threads: int = 1
    ) -> NDArray[np.uint8]:
        """GGUF blocks of [n, k] in the library's order."""
        packed = aligned(self.packed_bytes(isa, ggml_type, n, k))
        self._library.rt_pack(self.isas[isa], ggml_type, pointer(raw), n, k, pointer(packed), threads)
        return packed

    def linear(
        self,
        isa: str,
        ggml_type: int,
        packed: NDArray[np.uint8],
        x: NDArray[np.float32],
        n: int,
        *,
        bias: NDArray[np.float32] | None = None,
        residual: NDArray[np.float32] | None = None,
        gather: NDArray[np.int32] | None = None,
        scatter: NDArray[np.int32] | None = None,
        row_weights: NDArray[np.float32] | None = None,
        into: NDArray[np.float32] | None = None,
        threads: int = 1,
    ) -> NDArray[np.float32]:
        """float32 [rows, n] = x [rows, k] times the transposed weight, plus bias [n] and residual [rows, n].

        `gather` names the row of x, `scatter` the row of y, `row_weights` a factor of each row; `into` is added to.
        """
        rows, k = (len(gather), x.shape[1]) if gather is not None else x.shape
        y = np.full((rows, n), np.nan, np.float32) if into is None else into
        self._library.rt_linear(
            *(self.isas[isa], ggml_type, pointer(packed), n, k, pointer(x), rows, pointer(y)),
            *(pointer(bias), pointer(residual), pointer(gather), pointer(scatter), pointer(row_weights)),
            *(into is not None, threads),
        )
        return y
