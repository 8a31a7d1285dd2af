"""Short measurements of this processor: a checked run of a native kernel for probes, and the ceilings of a report."""

from __future__ import annotations

import ctypes
import time

from runtime.backend import DeviceInfo, PluginRejected
from runtime_cpu.native import Library

READ_BYTES = 256 << 20
"""More than any cache holds."""


def ceilings(library: Library, isa: str, threads: int) -> dict[str, float]:
    """What kernels are compared with: `read_bytes_per_s` of memory and `operations_per_s` of byte dot products.

    Reading is timed by the clock on the wall, best of five; the dot products of each thread in its own processor time.
    """
    from concurrent.futures import ThreadPoolExecutor

    data = library.rt_allocate(READ_BYTES, True)
    try:
        ctypes.memset(data, 1, READ_BYTES)
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            library.rt_measure_read(data, READ_BYTES, threads)
            seconds.append(time.perf_counter() - started)
    finally:
        library.rt_free(data, READ_BYTES)
    number = library.isas.index(isa)
    with ThreadPoolExecutor(threads) as pool:
        peaks = list(pool.map(library.rt_measure_dot_peak, [number] * threads))
    return {"read_bytes_per_s": READ_BYTES / min(seconds), "operations_per_s": sum(peaks)}


def measure(library: Library, isa: str) -> float:
    """Run a checked matrix-vector product on one thread; GB/s of weights that it reads."""
    import numpy as np

    from runtime_cpu.buffers import GGML_TYPES, NativeBuffer
    from runtime_cpu.device import NativeDevice, NativeExecutable
    from runtime_cpu.program import Area, Pointer, Step, WeightStruct, assemble

    size, runs = 1024, 4
    weight = ((np.arange(size * size) % 7).reshape(size, size)).astype(np.float32)
    x = (np.arange(size) % 5).astype(np.float32)
    y = np.zeros(size, np.float32)
    device = NativeDevice(library, DeviceInfo(index=0, name=isa, memory_bytes=0, score=0.0), isa=isa, num_threads=1)
    number, handle = GGML_TYPES["f32"], device.handle
    nbytes = library.rt_device_packed_bytes(handle, number, size, size)
    packed = NativeBuffer(library, nbytes, "a weight")
    library.rt_device_pack(handle, number, weight.ctypes.data, weight.nbytes, 1, size, size, packed.address, 0)
    struct = WeightStruct(number, size, size, packed.address)
    prepared = Area("prepared", library.rt_device_activation_bytes(handle, number, 1, size))
    inputs = [Pointer(x.ctypes.data), Pointer(struct.address), None, None, prepared]
    layout = assemble([Step("linear", 1, inputs, [Pointer(y.ctypes.data)], [1, 0])], (), ())
    executable = NativeExecutable(library, handle, layout, {}, isa)
    executable.submit({}, {}).wait()
    started = time.perf_counter()
    for _ in range(runs):
        executable.submit({}, {}).wait()
    seconds = time.perf_counter() - started
    executable.close()
    packed.close()
    device.close()
    if not np.array_equal(y, weight @ x):  # small integers: exact in float32
        raise PluginRejected(f"a native product ({isa}) is wrong on this processor", remedy="use another --cpu-isa")
    return float(runs * nbytes / max(seconds, 1e-9) / 1e9)
