"""The hooks of the cpu backend, and the choice of what computes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from runtime.backend import (
    BackendInfo,
    Device,
    DeviceConfig,
    DeviceInfo,
    InvalidArgument,
    Manifest,
    PluginRejected,
    hookimpl,
    host_memory,
    reference_manifest,
)
from runtime_cpu.capabilities import manifest_of
from runtime_cpu.host import Cores, instruction_sets, processor_name, usable_cores
from runtime_cpu.measure import measure
from runtime_cpu.native import choose_isa, load_library

NAME = "cpu"
NO_NATIVE_KERNELS = "no native kernels: this build computes with the numpy reference, which is right and slow"


class CpuBackend:
    """One device, the processors of this host, which is always there."""

    @hookimpl
    def runtime_backend_info(self) -> BackendInfo:
        """See `BackendHooks`. A probe finds something else when another number of cores may be used."""
        cores = usable_cores()
        isa = os.environ.get("RUNTIME_CPU_ISA", "")
        return BackendInfo(NAME, "hal-runtime", probe_key=f"{cores.count} {cores.reason} {isa}")

    @hookimpl
    def runtime_manifest(self) -> Manifest:
        """See `BackendHooks`."""
        library = load_library()
        if library is None:
            return reference_manifest(NAME)
        return manifest_of(library, choose_isa(library, {}), NAME)

    @hookimpl
    def runtime_probe(self) -> Sequence[DeviceInfo]:
        """See `BackendHooks`."""
        library = load_library()
        gigabytes_per_s = _measure() if library is None else measure(library, choose_isa(library, {}))
        # A reference must rank below any real accelerator, and above what declares itself a toy with a score of 0;
        # native kernels rank above the reference and below an accelerator's memory.
        score = (1.0 if library is None else 2.0) + gigabytes_per_s / (gigabytes_per_s + 100.0)
        return [replace(_describe(usable_cores()), score=round(score, 3))]

    @hookimpl
    def runtime_open(self, device: DeviceInfo, config: DeviceConfig) -> Device:
        """See `BackendHooks`. Cores are counted again: the process may have been moved since the probe."""
        cores = usable_cores()
        if config.threads is not None:
            if config.threads < 1:
                raise InvalidArgument(f"{config.threads} threads are none", remedy="ask for 1 or more")
            cores = Cores(config.threads, "as asked")
        return _make_device(replace(_describe(cores), score=device.score), cores, config)


def _make_device(info: DeviceInfo, cores: Cores, config: DeviceConfig) -> Device:
    """What computes: the one place that knows which kernels this build has."""
    library = load_library()
    if library is None:
        from runtime_cpu.reference import CpuReferenceDevice

        return CpuReferenceDevice(info, num_threads=cores.count)
    from runtime_cpu.device import NativeDevice

    isa = choose_isa(library, config.options)
    info = replace(info, details={**info.details, "isa": isa})
    return NativeDevice(library, info, isa=isa, num_threads=cores.count, name=NAME)


def _describe(cores: Cores) -> DeviceInfo:
    """Without a library, `isa` is what the processor has, and a notice says that nothing uses it."""
    _, total = host_memory()
    library = load_library()
    isa = " ".join(instruction_sets()) if library is None else choose_isa(library, {})
    details = {"threads": str(cores.count), "threads_reason": cores.reason, "isa": isa}
    notices = (NO_NATIVE_KERNELS,) if library is None else ()
    return DeviceInfo(index=0, name=processor_name(), memory_bytes=total, score=1.0, details=details, notices=notices)


def _measure() -> float:
    """Run a checked matrix-vector product; GB/s of weights that it reads."""
    import numpy as np

    size, runs = 1024, 4
    weight = (np.arange(size * size) % 7).reshape(size, size)
    x = np.arange(size) % 5
    stored, vector = weight.astype(np.float32), x.astype(np.float32)
    y = stored @ vector  # the first run also starts numpy's threads
    started = time.perf_counter()
    for _ in range(runs):
        y = stored @ vector
    seconds = time.perf_counter() - started
    if not np.array_equal(y.astype(np.int64), weight @ x):  # small integers: exact in float32
        raise PluginRejected(
            "a float32 matrix product of numpy is wrong on this processor", remedy="reinstall numpy for this machine"
        )
    return runs * stored.nbytes / max(seconds, 1e-9) / 1e9


plugin = CpuBackend()
