"""What a backend provides: the protocols of device, buffer, executable, event and communicator, and the hooks.

Tensors are opaque: the core knows specs and handles, and the host side of every exchange is a memoryview. A backend
that computes with numpy-like callables derives from `KernelBackend` and needs to know none of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import pluggy

from runtime.backend.manifest import Manifest
from runtime.dtypes import TensorSpec
from runtime.graph import Region

API_MAJOR = 1
"""Part of the entry-point group: a plugin for another major is never imported."""
API_LEVEL = 1
"""Grows by additions only, each with a default. A plugin states the level that it needs."""
ENTRY_POINT_GROUP = f"runtime.backends.v{API_MAJOR}"


@dataclass(frozen=True)
class BackendInfo:
    """Static facts about a backend; obtaining them touches no driver and imports nothing heavy."""

    name: str
    vendor: str
    version: str = "0"
    api_level: int = 1
    homepage: str = ""
    probe_key: str = ""
    """Whatever else changes what a probe finds, e.g. driver version and visible devices: results are cached by it."""
    probe_timeout_s: float = 10.0
    """How long a probe may take at its first time on a machine, when libraries are read and kernels are built."""


@dataclass(frozen=True)
class DeviceInfo:
    """One device that a probe found working. `score` ranks devices for `auto`; measured, higher is better."""

    index: int
    name: str
    memory_bytes: int
    score: float
    driver: str = ""
    uuid: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    """Sentences that the user must see before the first token, e.g. that native kernels are missing."""


@dataclass(frozen=True)
class DeviceConfig:
    """What the user asked of a device; None means that the device decides."""

    threads: int | None = None
    memory_bytes: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)


class Buffer(Protocol):
    """Memory on a device, or host memory that the device adopted."""

    @property
    def nbytes(self) -> int:
        """Bytes that it occupies."""

    def close(self) -> None:
        """Free it; closing twice is harmless."""


class Event(Protocol):
    """Completion of submitted work; it carries the error of that work."""

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the work is done; raise its error, or TimedOut."""

    def done(self) -> bool:
        """Whether `wait` would return or raise at once."""


class Executable(Protocol):
    """A compiled region."""

    @property
    def fingerprint(self) -> str:
        """Identifies kernels and options in reports."""

    def submit(self, bindings: Mapping[str, Buffer], dims: Mapping[str, int]) -> Event:
        """Start one run. `bindings` holds a buffer for every input and output of the region, by value name."""

    def close(self) -> None:
        """Free what was compiled; resident buffers belong to the caller."""


class Communicator(Protocol):
    """Collectives among the devices of one group; every call returns an event.

    `spec` is what each rank has: in `all_gather` and `reduce_scatter`, that of `source`. Ranks that call different
    collectives, or one with different specs, get an error. A rank that dies, or does not come within a time limit of
    the backend, makes the events of the others raise CollectiveFailed.
    """

    @property
    def rank(self) -> int:
        """Position of this device in the group."""

    @property
    def world_size(self) -> int:
        """Number of devices in the group."""

    def all_reduce(self, buffer: Buffer, spec: TensorSpec) -> Event:
        """Sum over all ranks, in place."""

    def all_gather(self, target: Buffer, source: Buffer, spec: TensorSpec) -> Event:
        """Concatenate every rank's `source` along the outermost dimension."""

    def reduce_scatter(self, target: Buffer, source: Buffer, spec: TensorSpec) -> Event:
        """Sum over all ranks; each keeps its part of the outermost dimension."""

    def all_to_all(self, target: Buffer, source: Buffer, spec: TensorSpec) -> Event:
        """Part r of the outermost dimension goes to rank r."""

    def broadcast(self, buffer: Buffer, spec: TensorSpec, root: int) -> Event:
        """Everybody gets the buffer of `root`."""

    def send(self, buffer: Buffer, spec: TensorSpec, peer: int) -> Event:
        """To one peer."""

    def recv(self, buffer: Buffer, spec: TensorSpec, peer: int) -> Event:
        """From one peer."""

    def abort(self) -> None:
        """Make every pending event raise CollectiveFailed."""


@runtime_checkable
class Device(Protocol):
    """An opened device. All sizes are bytes; all shapes are given with symbolic dimensions resolved."""

    @property
    def info(self) -> DeviceInfo:
        """Which device this is."""

    @property
    def manifest(self) -> Manifest:
        """What this very device can do with this driver."""

    def allocate(self, spec: TensorSpec) -> Buffer:
        """Memory for a tensor; a "kv" layout is arranged as the device likes. Raises OutOfMemory."""

    def adopt_host(self, data: memoryview, spec: TensorSpec) -> Buffer | None:
        """Use host memory (mapped file pages) in place, or decline with None."""

    def load_weight(self, spec: TensorSpec, data: memoryview, use: Mapping[str, Any]) -> Buffer:
        """Bring a weight onto the device; `use` (name, op, port of its first use) allows repacking.

        Where the device is one of `CachesWeights` and the user named a cache, `use["slot"]` is its `WeightSlot`.
        """

    def upload(self, target: Buffer, data: memoryview, spec: TensorSpec) -> Event:
        """Host to device; `data` is contiguous, row-major, little-endian."""

    def download(self, source: Buffer, into: memoryview, spec: TensorSpec) -> Event:
        """Device to host; `into` is writable and contiguous."""

    def copy(self, target: Buffer, source: Buffer, spec: TensorSpec) -> Event:
        """From one buffer of this device to another."""

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> Executable:
        """Make an executable; `resident` holds the region's weights, constants and states by value name.

        `hints` may be ignored. `arena_offsets` and `arena_bytes` say where intermediates may lie; `capture` asks a
        device whose rules are "capturable" to capture the first submission and to replay it afterwards.
        """

    def communicator(self, group: Sequence[str], rank: int) -> Communicator | None:
        """Join a group of peers, or None where the device has no collectives.

        `group` holds one address per rank: the path of a file that does not exist yet, in a folder that all ranks see;
        whatever ranks must tell each other before they can talk may lie there, and under names that begin with it.
        """

    def memory(self) -> Mapping[str, tuple[int, int]]:
        """Pool -> (free, total). The host's own memory is the pool "host"."""

    def counters(self) -> Mapping[str, int]:
        """kernels_run, bytes_uploaded, bytes_downloaded, host_compute_ns: since the device was opened."""

    def close(self) -> None:
        """Free everything that is left on the device."""


class WeightSlot(Protocol):
    """The place of one weight in a cache of packed weights, which outlives the process."""

    def find(self) -> tuple[str, memoryview] | None:
        """Form and bytes that `keep` was given by an earlier process, or None.

        The bytes are a mapped file's, read-only, at a multiple of 4096; they stay valid while they are referred to.
        """

    def keep(self, form: str, data: memoryview, finish: Callable[[], None]) -> None:
        """Offer `data` to later processes. `form` says what the bytes are; the device that finds them checks it.

        They are read after `finish` has returned, by another thread, and at the latest when the weight is closed.
        """


@runtime_checkable
class CachesWeights(Protocol):
    """What a device adds to `Device` so that its packed weights can be cached; a device without it works as well."""

    @property
    def weight_layout(self) -> str:
        """Whatever decides how weights are packed, e.g. instruction set and version: equal texts mean equal bytes."""


hookspec = pluggy.HookspecMarker("runtime")
hookimpl = pluggy.HookimplMarker("runtime")


class BackendHooks:
    """The hooks of a plugin, called at load time only. `info`, `manifest` and `open` are required."""

    @hookspec(firstresult=True)
    def runtime_backend_info(self) -> BackendInfo:  # type: ignore[empty-body]
        """Static facts: under 5 ms, no driver."""

    @hookspec(firstresult=True)
    def runtime_manifest(self) -> Manifest:  # type: ignore[empty-body]
        """The widest capability of this package; works without hardware."""

    @hookspec(firstresult=True)
    def runtime_probe(self) -> Sequence[DeviceInfo]:  # type: ignore[empty-body]
        """Find devices by running a real kernel on each. Called in a child process with a time limit."""

    @hookspec(firstresult=True)
    def runtime_open(self, device: DeviceInfo, config: DeviceConfig) -> Device:  # type: ignore[empty-body]
        """Open one device; heavy imports belong here."""

    @hookspec
    def runtime_register(self, catalogue: Any, formats: Any) -> None:
        """Add own operations to `catalogue` and own formats to `formats`, named `vendor::name`."""
