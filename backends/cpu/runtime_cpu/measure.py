"""A short, checked run of a native kernel, for probes."""

from __future__ import annotations

import time

from runtime.backend import DeviceInfo, PluginRejected
from runtime_cpu.native import Library


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
    library.rt_device_pack(handle, number, weight.ctypes.data, weight.nbytes, 1, size, size, packed.address)
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
