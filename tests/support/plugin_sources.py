"""Backends as text, for tests that install them."""

from __future__ import annotations

PLUGIN = """
from runtime.backend import BackendInfo, DeviceInfo, ReferenceDevice, hookimpl, reference_manifest
from runtime.errors import PluginRejected

class Plugin:
    @hookimpl
    def runtime_backend_info(self):
        return BackendInfo("@name", "tests")

    @hookimpl
    def runtime_manifest(self):
        return reference_manifest("@name")

    @hookimpl
    def @probe(self):
        @before
        details = {"isa": "scalar", "threads": "1", "threads_reason": "as always"}
        return [DeviceInfo(0, "@name chip", 8_000_000_000, 1e6, driver="4.1.7", details=details)]

    @hookimpl
    def runtime_open(self, device, config):
        return ReferenceDevice(device, name="@name")

plugin = Plugin()
"""


def plugin_source(name: str, *, probe: str = "runtime_probe", before: str = "pass") -> str:
    """A backend that computes by reference; `probe` may misspell the hook, `before` is what the probe does first."""
    return PLUGIN.replace("@name", name).replace("@probe", probe).replace("@before", before)
