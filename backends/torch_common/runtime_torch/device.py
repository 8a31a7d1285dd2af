"""An opened device: memory, transfers on one stream, and compilation of regions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from runtime.backend import Buffer, DeviceConfig, DeviceInfo, InvalidArgument, Manifest, Region, TensorSpec
from runtime_torch.accelerator import Accelerator, TorchEvent
from runtime_torch.calls import Shared, Workspace
from runtime_torch.errors import translated
from runtime_torch.executable import RegionExecutable
from runtime_torch.factors import row_factors
from runtime_torch.manifest import make_manifest
from runtime_torch.memory import Allocator, TorchBuffer, own
from runtime_torch.planes import LAYOUTS
from runtime_torch.products import tables
from runtime_torch.repack import repack
from runtime_torch.settings import Settings

POOL = "device"
PINNED_BYTES = 64 << 20
"""Uploads go in pieces: pages are locked once and used again, and the host copies one piece while one travels."""
KEPT_BYTES = 1 << 16
"""Step inputs up to here go to the device with their step, see `Inbox`."""


class TorchDevice:
    """Work runs in the order of submission. Weights in blocks are kept in planes, all others as they are stored."""

    def __init__(self, info: DeviceInfo, settings: Settings, config: DeviceConfig) -> None:
        self._accelerator = Accelerator(settings.device_type, info.index)
        self._info = info
        self._settings = settings
        self._manifest = make_manifest(settings)
        free, _ = self._accelerator.memory()
        self._allocator = Allocator(self._accelerator.device, config.memory_bytes or free)
        self._counters = {"kernels_run": 0, "bytes_uploaded": 0, "bytes_downloaded": 0, "host_compute_ns": 0}
        self._communicators: list[Any] = []
        self._is_closed = False
        device = self._accelerator.device
        with translated("opening"), self._accelerator.use():
            fault = torch.zeros(1, dtype=torch.int64, device=device)
            self._shared = Shared(settings, device, Workspace(device), fault, tables(device))

    @property
    def info(self) -> DeviceInfo:
        """Which device this is."""
        return self._info

    @property
    def manifest(self) -> Manifest:
        """See `make_manifest`."""
        return self._manifest

    @property
    def settings(self) -> Settings:
        """How it is used."""
        return self._settings

    def allocate(self, spec: TensorSpec) -> TorchBuffer:
        """Memory for a tensor, row-major; a KV cache is made of zeros. Raises OutOfMemory."""
        with self._accelerator.use():
            buffer = self._allocator.allocate(spec.nbytes(), f"a tensor {spec}")
            if spec.layout == "kv":
                with translated(f"clearing a KV cache {spec}"):
                    buffer.raw.zero_()
        return buffer

    def adopt_host(self, data: memoryview, spec: TensorSpec) -> None:
        """Declined: the device has memory of its own."""

    def load_weight(self, spec: TensorSpec, data: memoryview, use: Mapping[str, Any]) -> TorchBuffer:
        """As stored, or in planes where the format has blocks. Returns when `data` is no longer needed."""
        what = f"weight {use.get('name', '')} ({spec})"
        with self._accelerator.use():
            buffer = self._allocator.allocate(spec.nbytes(), what)
        try:
            self.upload(buffer, data, spec).wait()
            if spec.format.name not in LAYOUTS:
                return buffer
            shape = spec.resolve({})
            num_rows = 1
            for size in shape[:-1]:
                num_rows *= size
            with translated(f"repacking {what}"), self._accelerator.use():
                planes = repack(spec.format.name, buffer.raw, num_rows, shape[-1])
                planes |= row_factors(spec.format.name, planes)
        except BaseException:
            buffer.close()
            raise
        buffer.close()
        return self._allocator.adopt(planes, spec, what)

    def upload(self, target: Buffer, data: memoryview, spec: TensorSpec) -> TorchEvent:
        """Host to device, through pinned memory where that is apart; `data` may change once this returns there."""
        buffer, nbytes = own(target), spec.nbytes()
        _check_size(buffer, nbytes, spec)
        self._counters["bytes_uploaded"] += nbytes
        if buffer.keeps and nbytes <= KEPT_BYTES and data.nbytes == nbytes:
            buffer.keep(data)
            return TorchEvent(None, "uploading")
        what = f"uploading {spec}"
        host = _host_bytes(data, nbytes, spec)
        with translated(what, nbytes), self._accelerator.use():
            if not self._accelerator.is_async:
                buffer.raw[:nbytes].copy_(host)
                return TorchEvent(None, what)
            for start in range(0, nbytes, PINNED_BYTES):
                part = host[start : start + PINNED_BYTES]
                # torch gives a pinned piece out again only when the copy from it is done
                pinned = torch.empty(part.numel(), dtype=torch.uint8, pin_memory=True).copy_(part)
                buffer.raw[start : start + part.numel()].copy_(pinned, non_blocking=True)
            return TorchEvent(self._accelerator.mark(), what)

    def download(self, source: Buffer, into: memoryview, spec: TensorSpec) -> TorchEvent:
        """Device to host; `into` is filled when the event has been waited for."""
        buffer, nbytes, what = own(source), spec.nbytes(), f"downloading {spec}"
        host = _host_bytes(into, nbytes, spec)
        _check_size(buffer, nbytes, spec)
        self._counters["bytes_downloaded"] += nbytes
        with translated(what), self._accelerator.use():
            if not self._accelerator.is_async:
                host.copy_(buffer.raw[:nbytes])
                return TorchEvent(None, what)
            pinned = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
            pinned.copy_(buffer.raw[:nbytes], non_blocking=True)

            def arrive() -> None:
                host.copy_(pinned)

            return TorchEvent(self._accelerator.mark(), what, arrive, keep=(pinned, into))

    def copy(self, target: Buffer, source: Buffer, spec: TensorSpec) -> TorchEvent:
        """From one buffer of this device to another."""
        nbytes = spec.nbytes()
        for buffer in (own(target), own(source)):
            _check_size(buffer, nbytes, spec)
        with translated(f"copying {spec}"), self._accelerator.use():
            own(target).raw[:nbytes].copy_(own(source).raw[:nbytes])
            return TorchEvent(self._accelerator.mark(), f"copying {spec}")

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> RegionExecutable:
        """One list of launches for the region; intermediates are laid out here, whatever `hints` say."""
        with self._accelerator.use():
            return RegionExecutable(
                region,
                resident,
                self._accelerator,
                self._settings,
                self._manifest,
                self._shared,
                self._allocator,
                self._counters,
            )

    def communicator(self, group: Sequence[str], rank: int) -> Any:
        """Join a group through torch.distributed; `group[0]` is host:port of rank 0. See `TorchCommunicator`."""
        from runtime_torch.collectives import TorchCommunicator

        made = TorchCommunicator(self._accelerator, group, rank)
        self._communicators.append(made)
        return made

    def memory(self) -> Mapping[str, tuple[int, int]]:
        """Pool -> (free, total)."""
        free, total = self._allocator.free_and_total
        return {POOL: (min(free, self._accelerator.memory()[0]), total)}

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
            for communicator in self._communicators:
                communicator.close()
            self._accelerator.synchronize()
        finally:
            self._allocator.close()


def _host_bytes(data: memoryview, nbytes: int, spec: TensorSpec) -> torch.Tensor:
    if data.nbytes != nbytes:
        raise InvalidArgument(f"{spec} takes {nbytes} bytes, the host side has {data.nbytes}")
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    array = np.frombuffer(data, np.uint8)
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        # torch has no read-only tensors and warns about one over mapped file pages; here it is only read
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def _check_size(buffer: TorchBuffer, nbytes: int, spec: TensorSpec) -> None:
    if nbytes > buffer.nbytes:
        raise InvalidArgument(f"{spec} takes {nbytes} bytes, the buffer has {buffer.nbytes}")
