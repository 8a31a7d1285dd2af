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
from runtime.backend.manifest import KVLayout, Manifest, Match, Numerics, OneOf, Range, Rule

__all__ = [
    "API_LEVEL",
    "API_MAJOR",
    "ENTRY_POINT_GROUP",
    "BackendHooks",
    "BackendInfo",
    "Buffer",
    "Communicator",
    "Device",
    "DeviceConfig",
    "DeviceInfo",
    "Event",
    "Executable",
    "KVLayout",
    "Manifest",
    "Match",
    "Numerics",
    "OneOf",
    "Range",
    "Rule",
    "hookimpl",
]
