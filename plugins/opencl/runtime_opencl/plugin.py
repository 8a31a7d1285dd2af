"""The hooks of the backend; nothing here needs a driver until a probe or an opening."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from runtime.backend import BackendInfo, Device, DeviceConfig, DeviceInfo, Manifest, PluginRejected, hookimpl
from runtime_opencl.manifest import NAME, make_manifest

ICD_FOLDER = Path("/etc/OpenCL/vendors")


class OpenclBackend:
    """One device per device of each OpenCL platform."""

    @hookimpl
    def runtime_backend_info(self) -> BackendInfo:
        """See `BackendHooks`. What a probe finds changes with pyopencl and with the drivers that are registered."""
        return BackendInfo(NAME, "hal-runtime", _version("runtime-opencl"), probe_key=_probe_key())

    @hookimpl
    def runtime_manifest(self) -> Manifest:
        """See `BackendHooks`."""
        return make_manifest()

    @hookimpl
    def runtime_probe(self) -> Sequence[DeviceInfo]:
        """See `BackendHooks`."""
        from runtime_opencl.probe import probe

        return probe()

    @hookimpl
    def runtime_open(self, device: DeviceInfo, config: DeviceConfig) -> Device:
        """See `BackendHooks`."""
        from runtime_opencl.device import OpenclDevice
        from runtime_opencl.probe import describe, enumerate_devices, require_abilities

        present = enumerate_devices()
        if device.index >= len(present):
            raise PluginRejected(
                f"OpenCL device {device.index} ({device.name}) is gone; {len(present)} are present",
                remedy="look at runtime doctor opencl",
            )
        chosen = present[device.index]
        require_abilities(chosen)
        info = describe(chosen, device.index, device.score)
        if info.name != device.name:
            raise PluginRejected(
                f"OpenCL device {device.index} is {info.name} now; the probe found {device.name} there",
                remedy="look at runtime doctor opencl",
            )
        return OpenclDevice(replace(info, notices=device.notices), chosen, config)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # run from a checkout
        return "0"


def _probe_key() -> str:
    drivers = sorted(p.name for p in ICD_FOLDER.glob("*.icd")) if ICD_FOLDER.is_dir() else []
    parts = [_version(d) for d in ("pyopencl", "pocl-binary-distribution")]
    return " ".join([*parts, *drivers])


plugin = OpenclBackend()
