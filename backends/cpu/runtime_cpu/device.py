"""The native device: packs weights, compiles regions into programs, runs a step with one call."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from runtime.backend import (
    Buffer,
    DeviceInfo,
    ExecutionFailed,
    FinishedEvent,
    InvalidArgument,
    Manifest,
    OutOfMemory,
    Region,
    RuntimeFault,
    TensorSpec,
    Unsupported,
    from_bytes,
    host_memory,
    to_bytes,
)
from runtime.backend.collectives import HostCommunicator
from runtime_cpu.buffers import NativeBuffer, NativeCache, NativeWeight
from runtime_cpu.capabilities import native_manifest
from runtime_cpu.compiler import Compiler
from runtime_cpu.native import Library
from runtime_cpu.program import Layout, Pointer, Step, assemble

PANELS_VERSION = 1
"""Of the bytes that `pack` writes: it grows with every change of a packed format, so that caches of older ones end."""
_MESSAGE_BYTES = 512
_FAULTS = {1: InvalidArgument, 2: ExecutionFailed}


class NativeDevice:
    """The processors of this host, through the native library, with one instruction set and a pool of threads.

    A weight's stored bytes are used in place until it is packed; whoever gave them keeps them valid while the weight
    is open.
    """

    def __init__(self, library: Library, info: DeviceInfo, *, isa: str, num_threads: int, name: str = "cpu") -> None:
        self._library = library
        self._info = info
        self.isa = isa
        device = library.rt_device_open(library.isas.index(isa), num_threads)
        if not device:
            raise OutOfMemory(f"the system gives this process no {num_threads} threads", remedy="ask for fewer threads")
        self._device: int = device
        self._manifest = native_manifest(library, device, name)
        self._decoded: dict[str, set[str]] = {}
        self._counters = dict.fromkeys(
            ("kernels_run", "bytes_uploaded", "bytes_downloaded", "host_compute_ns", "weights_packed"), 0
        )

    @property
    def handle(self) -> int:
        """The library's device."""
        return self._device

    @property
    def info(self) -> DeviceInfo:
        """Which device this is; once weights are loaded, its notices tell which were decoded for lack of kernels."""
        told = tuple(
            f"{stored} weights have no native kernels: decoded to {' and '.join(sorted(made))} at load"
            for stored, made in sorted(self._decoded.items())
        )
        return replace(self._info, notices=(*self._info.notices, *told))

    @property
    def manifest(self) -> Manifest:
        """See `native_manifest`."""
        return self._manifest

    @property
    def weight_layout(self) -> str:
        """See `CachesWeights`."""
        return f"cpu {self.isa} panels {PANELS_VERSION}"

    def allocate(self, spec: TensorSpec) -> NativeBuffer:
        """Memory for a tensor; a KV cache is zeros, in the library's layout."""
        if spec.layout == "kv":
            return NativeCache(self._library, spec)
        return NativeBuffer(self._library, spec.nbytes(), f"a tensor {spec}")

    def adopt_host(self, data: memoryview, spec: TensorSpec) -> None:
        """Declined: a weight is packed for the operation that uses it, see `load_weight`."""

    def load_weight(self, spec: TensorSpec, data: memoryview, use: Mapping[str, Any]) -> NativeWeight:
        """A weight, packed by all threads where its first use is a product, while the caller goes on."""
        expected = spec.nbytes()
        if data.nbytes != expected:
            raise InvalidArgument(f"a weight {spec} takes {expected} bytes, {data.nbytes} were given")
        weight = NativeWeight(self._library, self._device, spec, data.cast("B"), use.get("slot"))
        if use.get("op") in ("linear@1", "moe_linear@1") and use.get("port") == "weight":
            weight.packed()
        self._counters["bytes_uploaded"] += data.nbytes
        return weight

    def upload(self, target: Buffer, data: memoryview, spec: TensorSpec) -> FinishedEvent:
        """Copy into a buffer; a KV cache is rearranged. Raises InvalidArgument for data of another size than `spec`."""
        expected = spec.nbytes()
        if data.nbytes != expected:
            raise InvalidArgument(f"a tensor {spec} takes {expected} bytes, {data.nbytes} were given")
        if isinstance(target, NativeCache):
            _check_cache(target, spec)
            values = from_bytes(TensorSpec(spec.format, spec.shape), data)
            self._transfer_cache("kv_import", target, _as_f32(values))
        else:
            _own(target).write(data)
        self._counters["bytes_uploaded"] += data.nbytes
        return FinishedEvent()

    def download(self, source: Buffer, into: memoryview, spec: TensorSpec) -> FinishedEvent:
        """Copy out of a buffer; a KV cache comes in its canonical order."""
        if isinstance(source, NativeCache):
            import numpy as np

            _check_cache(source, spec)
            values = np.empty(spec.resolve({}), np.float32)
            self._transfer_cache("kv_export", source, values)
            into[:] = to_bytes(TensorSpec(spec.format, spec.shape), values)
        else:
            _own(source).read(into)
        self._counters["bytes_downloaded"] += into.nbytes
        return FinishedEvent()

    def copy(self, target: Buffer, source: Buffer, spec: TensorSpec) -> FinishedEvent:
        """From one buffer to another of the same kind."""
        into, out = _own(target), _own(source)
        nbytes = min(into.nbytes, out.nbytes) if isinstance(out, NativeCache) else spec.nbytes()
        ctypes.memmove(into.address, out.address, nbytes)
        return FinishedEvent()

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> NativeExecutable:
        """A program for the region; weights that it needs in another form than they were loaded in get it now.

        Raises Unsupported, with the reasons, for a node that the manifest does not cover for all of `region.dims`.
        """
        for node in region.nodes:
            match = self._manifest.match(node.op.key, node.facts(region.dims))
            if match.coverage != "full":
                raise Unsupported(
                    f"node {node.name}: the native cpu device has no such {node.op.key}", reasons=match.reasons
                )
        layout = Compiler(self._library, self._device, region, resident).run()
        weights = [buffer for buffer in resident.values() if isinstance(buffer, NativeWeight)]
        self._counters["weights_packed"] += sum(weight.was_packed for weight in weights)
        for weight in weights:
            if weight.decoded_to is not None:
                self._decoded.setdefault(weight.spec.format.name, set()).add(weight.decoded_to)
        return NativeExecutable(self._library, self._device, layout, self._counters, f"native {self.isa}")

    def ceilings(self, threads: int) -> Mapping[str, float]:
        """See `runtime_cpu.measure.ceilings`."""
        from runtime_cpu.measure import ceilings

        return ceilings(self._library, self.isa, threads)

    def communicator(self, group: Sequence[str], rank: int) -> HostCommunicator:
        """A rank among processes of this host."""
        return HostCommunicator(self, group, rank)

    def memory(self) -> Mapping[str, tuple[int, int]]:
        """Pool -> (free, total)."""
        return {"host": host_memory()}

    def counters(self) -> Mapping[str, int]:
        """As every device, and weights_packed: since the device was opened."""
        return dict(self._counters)

    def close(self) -> None:
        """End the threads; closing twice is harmless."""
        if self._device:
            self._library.rt_device_close(self._device)
            self._device = 0

    def _transfer_cache(self, code: str, cache: NativeCache, values: Any) -> None:
        """All blocks of a cache from, or into, an f32 array [2, B, C, H, D]."""
        import numpy as np

        num_blocks = cache.struct.num_blocks
        blocks = np.arange(num_blocks, dtype=np.int32)
        data, ids = Pointer(values.ctypes.data), Pointer(blocks.ctypes.data)
        inputs = [Pointer(cache.pointer), data, ids] if code == "kv_import" else [Pointer(cache.pointer), ids]
        step = Step(code, num_blocks, inputs, [] if code == "kv_import" else [data])
        program = NativeExecutable(self._library, self._device, assemble([step], (), ()), {}, code)
        program.submit({}, {}).wait()
        program.close()


class NativeExecutable:
    """A program of the library; `submit` runs all of it and returns when it is done."""

    def __init__(
        self, library: Library, device: int, layout: Layout, counters: dict[str, int], fingerprint: str
    ) -> None:
        self._library = library
        self._layout = layout  # the operations are copied; what they point to is kept alive by the resident buffers
        self._counters = counters
        self._fingerprint = fingerprint
        self._message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        self._dims = (ctypes.c_int64 * max(1, len(layout.dims)))()
        self._bindings = (ctypes.c_void_p * max(1, len(layout.bindings)))()
        program = library.rt_program_create(device, layout.operations, len(layout.operations), layout.arena_bytes)
        if not program:
            raise OutOfMemory(
                f"intermediates of a step take {layout.arena_bytes} bytes, which the host does not have",
                remedy="allow fewer tokens in a step",
                requested_bytes=layout.arena_bytes,
            )
        self._program: int = program

    @property
    def fingerprint(self) -> str:
        """Instruction set, and number of operations."""
        return f"{self._fingerprint}, {len(self._layout.operations)} operations"

    def submit(self, bindings: Mapping[str, Buffer], dims: Mapping[str, int]) -> FinishedEvent:
        """Run the program now; the event is done and carries the error, if any."""
        for i, name in enumerate(self._layout.dims):
            self._dims[i] = dims[name]
        for i, name in enumerate(self._layout.bindings):
            self._bindings[i] = bindings[name].address  # type: ignore[attr-defined]
        started = time.perf_counter_ns()
        status = self._library.rt_program_run(self._program, self._dims, self._bindings, self._message, _MESSAGE_BYTES)
        if self._counters:
            self._counters["kernels_run"] += len(self._layout.operations)
            self._counters["device_ns"] = self._counters.get("device_ns", 0) + time.perf_counter_ns() - started
        if status:
            fault: type[RuntimeFault] = _FAULTS.get(status, ExecutionFailed)
            return FinishedEvent(fault(self._message.value.decode("utf-8", "replace")))
        return FinishedEvent()

    def close(self) -> None:
        """Free the program; closing twice is harmless."""
        if self._program:
            self._library.rt_program_destroy(self._program)
            self._program = 0


def _own(buffer: Buffer) -> NativeBuffer:
    if not isinstance(buffer, NativeBuffer):
        raise InvalidArgument(f"a {type(buffer).__name__} was given to a device that did not allocate it")
    return buffer


def _check_cache(cache: NativeCache, spec: TensorSpec) -> None:
    if spec.resolve({}) != cache.spec.resolve({}):
        raise InvalidArgument(f"{spec} was exchanged with a KV cache {cache.spec}; both must have one shape")


def _as_f32(values: Any) -> Any:
    import numpy as np

    array = values.decode() if hasattr(values, "decode") else values
    return np.ascontiguousarray(array, dtype=np.float32)
