"""An opened OpenCL device: memory, transfers on one in-order queue, and compilation of regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.backend import (
    Buffer,
    DeviceConfig,
    DeviceInfo,
    HostCommunicator,
    InvalidArgument,
    Manifest,
    Region,
    TensorSpec,
    Unsupported,
)
from runtime_opencl.errors import translated
from runtime_opencl.event import CommandEvent
from runtime_opencl.executable import RegionExecutable
from runtime_opencl.manifest import make_manifest
from runtime_opencl.memory import Allocator, DeviceBuffer, own
from runtime_opencl.programs import Programs

POOL = "device"


class OpenclDevice:
    """Commands run in the order of submission. Weights stay in the blocks that they are stored in."""

    def __init__(self, info: DeviceInfo, cl_device: Any, config: DeviceConfig) -> None:
        import pyopencl as cl

        with translated(f"opening {info.name}"):
            context = cl.Context([cl_device])
            self._queue = cl.CommandQueue(context, cl_device)
        self._info = info
        self._manifest = make_manifest()
        self._programs = Programs(context, cl_device)
        self._allocator = Allocator(context, cl_device, config.memory_bytes)
        self._counters = {"kernels_run": 0, "bytes_uploaded": 0, "bytes_downloaded": 0, "host_compute_ns": 0}
        self._is_closed = False

    @property
    def info(self) -> DeviceInfo:
        """Which device this is."""
        return self._info

    @property
    def manifest(self) -> Manifest:
        """See `make_manifest`."""
        return self._manifest

    def allocate(self, spec: TensorSpec) -> DeviceBuffer:
        """Memory for a tensor, row-major; a KV cache is made of zeros. Raises OutOfMemory."""
        import pyopencl as cl

        nbytes = spec.nbytes()
        buffer = self._allocator.allocate(nbytes, f"a tensor {spec}")
        if spec.layout == "kv":
            with translated(f"clearing a KV cache {spec}", nbytes):
                cl.enqueue_fill_buffer(self._queue, buffer.memory, np.int8(0), 0, nbytes)
        return buffer

    def adopt_host(self, data: memoryview, spec: TensorSpec) -> None:
        """Declined: the device has memory of its own."""

    def load_weight(self, spec: TensorSpec, data: memoryview, use: Mapping[str, Any]) -> DeviceBuffer:
        """A copy on the device, as stored. Returns when `data` is no longer needed."""
        what = f"weight {use.get('name', '')} ({spec})"
        buffer = self._allocator.allocate(spec.nbytes(), what)
        try:
            self.upload(buffer, data, spec).wait()
        except BaseException:
            buffer.close()
            raise
        return buffer

    def upload(self, target: Buffer, data: memoryview, spec: TensorSpec) -> CommandEvent:
        """Host to device; `data` must stay as it is until the event is done."""
        source = np.frombuffer(data, dtype=np.uint8)
        return self._transfer(own(target), source, spec, is_upload=True)

    def download(self, source: Buffer, into: memoryview, spec: TensorSpec) -> CommandEvent:
        """Device to host."""
        return self._transfer(own(source), np.frombuffer(into, dtype=np.uint8), spec, is_upload=False)

    def copy(self, target: Buffer, source: Buffer, spec: TensorSpec) -> CommandEvent:
        """From one buffer of this device to another."""
        import pyopencl as cl

        nbytes = spec.nbytes()
        for buffer in (own(target), own(source)):
            _check_size(buffer, nbytes, spec)
        with translated(f"copying {spec}"):
            event = cl.enqueue_copy(self._queue, own(target).memory, own(source).memory, byte_count=nbytes)
            self._queue.flush()
        return CommandEvent(event, f"copying {spec}")

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> RegionExecutable:
        """One sequence of commands for the region; intermediates are laid out here, whatever `hints` say.

        Raises Unsupported for a node that no rule covers: kernels take what they are given, and know no formats.
        """
        reasons = []
        for node in region.nodes:
            match = self._manifest.match(node.op.key, node.facts(region.dims))
            if match.coverage != "full":
                reasons.append(f"node {node.name} ({node.op.key}): {'; '.join(match.reasons)}")
        if reasons:
            raise Unsupported(f"{region.name} cannot be compiled by {self._manifest.backend}", reasons=reasons)
        return RegionExecutable(region, resident, self._queue, self._programs, self._allocator, self._counters)

    def communicator(self, group: Sequence[str], rank: int) -> HostCommunicator:
        """A rank among processes of this host: OpenCL has no way from device to device, so sums are made there."""
        return HostCommunicator(self, group, rank)

    def memory(self) -> Mapping[str, tuple[int, int]]:
        """Pool -> (free, total)."""
        return {POOL: self._allocator.free_and_total}

    def counters(self) -> Mapping[str, int]:
        """kernels_run, bytes_uploaded, bytes_downloaded, host_compute_ns: since the device was opened.

        Nothing is computed outside of kernels: host_compute_ns stays 0.
        """
        return dict(self._counters)

    def close(self) -> None:
        """Wait for what was submitted, and free all memory; closing twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            with translated("closing"):
                self._queue.finish()
        finally:
            self._allocator.close()

    def _transfer(self, buffer: DeviceBuffer, host: Any, spec: TensorSpec, *, is_upload: bool) -> CommandEvent:
        import pyopencl as cl

        nbytes = spec.nbytes()
        if host.size != nbytes:
            raise InvalidArgument(f"{spec} takes {nbytes} bytes, the host side has {host.size}")
        _check_size(buffer, nbytes, spec)
        what = f"{'uploading' if is_upload else 'downloading'} {spec}"
        with translated(what):
            ends = (buffer.memory, host) if is_upload else (host, buffer.memory)
            event = cl.enqueue_copy(self._queue, *ends, is_blocking=False)
            self._queue.flush()
        self._counters["bytes_uploaded" if is_upload else "bytes_downloaded"] += nbytes
        return CommandEvent(event, what, keep=host)


def _check_size(buffer: DeviceBuffer, nbytes: int, spec: TensorSpec) -> None:
    if nbytes > buffer.nbytes:
        raise InvalidArgument(f"{spec} takes {nbytes} bytes, the buffer has {buffer.nbytes}")
