"""The hooks that the torch-based backends share; nothing here imports torch until a probe or an opening."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from runtime.backend import BackendInfo, Device, DeviceConfig, DeviceInfo, Manifest, PluginRejected, hookimpl
from runtime_torch.facts import TRITONS, Facts, gather_facts
from runtime_torch.manifest import make_manifest
from runtime_torch.settings import Settings

PROBE_TIMEOUT_S = 90.0
"""On a machine's first start torch reads gigabytes of libraries, and Triton builds its launcher and a kernel."""


@dataclass(frozen=True)
class Kind:
    """What a backend knows about its chips.

    name         of the backend
    device_type  torch's
    built_for    what the build of torch must be for: "cuda", "rocm", "xpu"
    widest       settings of the most capable chip, for planning without one
    hidden_by    environment variables that hide devices, and their values where they are set
    driver_files paths whose presence or content changes with the driver
    refusal      facts -> (reason, remedy) why no device can be used, or None
    settings     (facts, index) -> settings of that chip; raises PluginRejected where the chip is too old
    prepare      called in the process that opens a device, before torch allocates anything
    """

    name: str
    device_type: str
    built_for: str
    widest: Settings
    hidden_by: Callable[[], Mapping[str, str]]
    driver_files: tuple[str, ...]
    refusal: Callable[[Facts], tuple[str, str] | None]
    settings: Callable[[Facts, int], Settings]
    prepare: Callable[[], None] = lambda: None


class TorchBackend:
    """One device per chip that torch finds."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    @hookimpl
    def runtime_backend_info(self) -> BackendInfo:
        """See `BackendHooks`. What a probe finds changes with torch, triton, the driver and what hides devices."""
        parts = [f"{d} {_version(d)}" for d in ("torch", *TRITONS, "intel-extension-for-pytorch")]
        parts += [f"{name}={value}" for name, value in sorted(self.kind.hidden_by().items())]
        parts += [_stamp(path) for path in self.kind.driver_files]
        return BackendInfo(
            self.kind.name,
            "hal-runtime",
            _version("hal-runtime"),
            probe_key=" ".join(parts),
            probe_timeout_s=PROBE_TIMEOUT_S,
        )

    @hookimpl
    def runtime_manifest(self) -> Manifest:
        """See `BackendHooks`."""
        return make_manifest(self.kind.widest)

    @hookimpl
    def runtime_probe(self) -> Sequence[DeviceInfo]:
        """See `BackendHooks`."""
        facts = self._facts()
        from runtime_torch.probe import probe

        return probe(facts, lambda index: self.kind.settings(facts, index))

    @hookimpl
    def runtime_open(self, device: DeviceInfo, config: DeviceConfig) -> Device:
        """See `BackendHooks`. Options: precision f32 or half, capture on or off."""
        facts = self._facts()
        if device.index >= len(facts.chips):
            raise PluginRejected(
                f"{self.kind.name} device {device.index} ({device.name}) is gone; {len(facts.chips)} are present",
                remedy=f"look at runtime doctor {self.kind.name}",
            )
        chip = facts.chips[device.index]
        if chip.name != device.name:
            raise PluginRejected(
                f"{self.kind.name} device {device.index} is {chip.name} now; the probe found {device.name} there",
                remedy=f"look at runtime doctor {self.kind.name}",
            )
        settings = self.kind.settings(facts, device.index).with_options(dict(config.options))
        return open_device(device, settings, config)

    def _facts(self) -> Facts:
        self.kind.prepare()
        facts = gather_facts(self.kind.device_type, self.kind.built_for)
        refusal = self.kind.refusal(facts)
        if refusal is not None:
            raise PluginRejected(refusal[0], remedy=refusal[1])
        return facts


def open_device(info: DeviceInfo, settings: Settings, config: DeviceConfig) -> Device:
    """The device, with what only trying can tell filled into its settings."""
    from runtime_torch.accelerator import Accelerator
    from runtime_torch.device import TorchDevice
    from runtime_torch.errors import translated
    from runtime_torch.products import has_wide_output

    accelerator = Accelerator(settings.device_type, info.index)
    with translated(f"opening {info.name}"), accelerator.use():
        settings = replace(settings, wide_output=has_wide_output(accelerator.device))
    return TorchDevice(info, settings, config)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


def _stamp(path: str) -> str:
    """A file's time of change, which is cheap to read and moves with the driver."""
    try:
        return f"{path}@{Path(path).stat().st_mtime_ns}"
    except OSError:
        return f"{path}@absent"
