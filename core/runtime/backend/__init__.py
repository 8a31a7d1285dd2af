"""The contract between the core and a backend: the only package that a plugin imports."""

from runtime.backend.contract import (
    API_LEVEL,
    API_MAJOR,
    ENTRY_POINT_GROUP,
    BackendHooks,
    BackendInfo,
    Buffer,
    Communicator,
    Device,
    DeviceConfig,
    DeviceInfo,
    Event,
    Executable,
    hookimpl,
)
from runtime.backend.host import ArrayBuffer, FinishedEvent, QuantizedTensor, from_bytes, host_memory, to_bytes
from runtime.backend.kernel_table import kernel
from runtime.backend.kernels import KernelBackend, KernelDevice
from runtime.backend.manifest import KVLayout, Manifest, Match, Numerics, OneOf, Range, Rule
from runtime.backend.null import NullDevice
from runtime.backend.reference import ReferenceDevice, reference_manifest

__all__ = [
    "API_LEVEL",
    "API_MAJOR",
    "ENTRY_POINT_GROUP",
    "ArrayBuffer",
    "BackendHooks",
    "BackendInfo",
    "Buffer",
    "Communicator",
    "Device",
    "DeviceConfig",
    "DeviceInfo",
    "Event",
    "Executable",
    "FinishedEvent",
    "KVLayout",
    "KernelBackend",
    "KernelDevice",
    "Manifest",
    "Match",
    "NullDevice",
    "Numerics",
    "OneOf",
    "QuantizedTensor",
    "Range",
    "ReferenceDevice",
    "Rule",
    "from_bytes",
    "hookimpl",
    "host_memory",
    "kernel",
    "reference_manifest",
    "to_bytes",
]
