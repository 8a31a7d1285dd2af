"""Finds OpenCL devices, runs a kernel on each, and says in one line why one cannot be used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from runtime.backend import DeviceInfo, PluginRejected, RuntimeFault
from runtime_opencl.calls import i32, u64
from runtime_opencl.errors import translated
from runtime_opencl.lowering import linear_call
from runtime_opencl.programs import Programs

INSTALL_DRIVER = "install the OpenCL driver of your device, or PoCL for the processor: pip install runtime-opencl[pocl]"
MIN_GROUP_SIZE = 256
MIN_LOCAL_BYTES = 16 << 10
"""What the kernels use at most: two tiles of 32 x 32 floats are half of it."""
NUM_COLUMNS, NUM_ROWS = 4096, 4096
BLOCK_BYTES = 34
NUM_RUNS = 4


def enumerate_devices() -> list[Any]:
    """All devices of all platforms; the position is the index. Raises PluginRejected where there are none."""
    try:
        import pyopencl as cl
    except ImportError as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded: {error}"
        raise PluginRejected(f"pyopencl {reason}", remedy="pip install pyopencl") from error
    try:
        platforms = cl.get_platforms()
    except cl.Error as error:  # the loader's way to say that it found no driver
        raise PluginRejected(
            f"no OpenCL platform: no driver (ICD) is installed ({error})", remedy=INSTALL_DRIVER
        ) from error
    if not platforms:
        raise PluginRejected("no OpenCL platform: no driver (ICD) is installed", remedy=INSTALL_DRIVER)
    devices = [device for platform in platforms for device in _devices_of(platform)]
    if not devices:
        names = ", ".join(p.name.strip() for p in platforms)
        raise PluginRejected(f"no OpenCL device: the platforms {names} have none", remedy=INSTALL_DRIVER)
    return devices


def probe() -> list[DeviceInfo]:
    """The devices that answer right; raises PluginRejected with every reason when there is none."""
    found, reasons, remedies = [], [], []
    for index, device in enumerate(enumerate_devices()):
        try:
            require_abilities(device)
            gigabytes_per_s = measure(device)
        except RuntimeFault as error:
            reasons.append(f"{device.name.strip()}: {error.message}")
            remedies.append(error.remedy or INSTALL_DRIVER)
            continue
        found.append(describe(device, index, round(gigabytes_per_s, 3)))
    if not found:
        raise PluginRejected("; ".join(reasons), remedy=remedies[0])
    return found


def describe(device: Any, index: int, score: float) -> DeviceInfo:
    """Facts about a device that was found working."""
    extensions = device.extensions.split()
    details = {
        "platform": f"{device.platform.name.strip()} ({device.platform.version.strip()})",
        "compute_units": str(device.max_compute_units),
        "fp16": "yes" if "cl_khr_fp16" in extensions else "no: halves are stored, arithmetic is float32",
    }
    return DeviceInfo(
        index=index,
        name=device.name.strip(),
        memory_bytes=int(device.global_mem_size),
        score=score,
        driver=device.driver_version.strip(),
        details=details,
    )


def require_abilities(device: Any) -> None:
    """Raise PluginRejected for what the kernels rely on and the device lacks.

    cl_khr_fp16 is not among it: halves in weights and caches are read and written by functions of core OpenCL C.
    """
    lacks = next(_missing(device), None)
    if lacks is not None:
        raise PluginRejected(lacks, remedy="use another device, or a newer driver")


def measure(device: Any) -> float:
    """GB/s of q8_0 weights in a checked matrix-vector product; raises PluginRejected for a wrong answer."""
    import pyopencl as cl

    with translated("the first kernel"):
        context = cl.Context([device])
        queue = cl.CommandQueue(context, device)
        programs = Programs(context, device)
        # every block alike: scale 0.5, quants 1, 2 .. 32; x of small integers: the sums are exact in any order
        block = np.concatenate([np.frombuffer(np.float16(0.5).tobytes(), np.uint8), np.arange(1, 33, dtype=np.uint8)])
        row = np.tile(block, NUM_COLUMNS // 32)
        x = (np.arange(NUM_COLUMNS) % 5 - 2).astype(np.float32)
        expected = float(0.5 * np.tile(np.arange(1, 33), NUM_COLUMNS // 32) @ x)
        weight = cl.Buffer(context, cl.mem_flags.READ_ONLY, size=NUM_ROWS * row.nbytes)
        stored = np.tile(row, NUM_ROWS)
        cl.enqueue_copy(queue, weight, stored)
        vector = cl.Buffer(context, cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR, hostbuf=x)
        result = cl.Buffer(context, cl.mem_flags.READ_WRITE, size=4 * NUM_ROWS)
        sizes = (i32(1), i32(NUM_COLUMNS), i32(NUM_ROWS), u64(row.nbytes), i32(0))
        call = linear_call((vector, weight, vector, result, *sizes), 1, NUM_ROWS, "q8_0", programs.num_lanes)
        kernel = programs.kernel(call.file, call.kernel, *call.definitions)
        kernel.set_args(*call.arguments)
        y = np.zeros(NUM_ROWS, np.float32)
        cl.enqueue_nd_range_kernel(queue, kernel, call.num_items, call.group)
        cl.enqueue_copy(queue, y, result)
        started = time.perf_counter()
        for _ in range(NUM_RUNS):
            cl.enqueue_nd_range_kernel(queue, kernel, call.num_items, call.group)
        queue.finish()
        seconds = time.perf_counter() - started
    wrong = int((y != expected).sum())
    if wrong:
        raise PluginRejected(
            f"{wrong} of {NUM_ROWS} rows of its first matrix product are wrong", remedy="install a newer OpenCL driver"
        )
    return NUM_RUNS * stored.nbytes / max(seconds, 1e-9) / 1e9


def _missing(device: Any) -> Iterator[str]:
    if not device.available:
        yield "its driver says that it is not available"
    if not device.compiler_available:
        yield "its driver has no compiler for OpenCL C"
    if not device.endian_little:
        yield "it is big-endian; weights are stored little-endian"
    if "FULL" not in device.profile:
        yield f"it has {device.profile}; float arithmetic with the rounding of FULL_PROFILE is needed"
    if device.max_work_group_size < MIN_GROUP_SIZE:
        yield f"groups of {device.max_work_group_size} work-items at most; {MIN_GROUP_SIZE} are needed"
    if device.local_mem_size < MIN_LOCAL_BYTES:
        yield f"{device.local_mem_size} bytes of local memory; {MIN_LOCAL_BYTES} are needed"


def _devices_of(platform: Any) -> list[Any]:
    import pyopencl as cl

    try:
        return list(platform.get_devices())
    except cl.Error:  # DEVICE_NOT_FOUND: a driver without its device; if all are so, the caller names them
        return []
