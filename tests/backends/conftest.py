"""Fake plugins: real packages with real metadata, in a folder that is on sys.path for one test."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GOOD_PLUGIN = """
from runtime.backend import BackendInfo, DeviceInfo, Manifest, hookimpl

class Plugin:
    @hookimpl
    def runtime_backend_info(self):
        return BackendInfo("{name}", "test", api_level={api_level})

    @hookimpl
    def runtime_manifest(self):
        return Manifest("{name}")

    @hookimpl
    def runtime_probe(self):
        {probe}

    @hookimpl
    def runtime_open(self, device, config):
        {open}

plugin = Plugin()
"""

InstallPlugin = Callable[..., None]


def plugin_source(
    name: str,
    *,
    api_level: int = 1,
    probe: str = 'return [DeviceInfo(index=0, name="fake", memory_bytes=1024, score=1.0)]',
    open: str = "raise OSError('no driver')",
) -> str:
    """A complete plugin whose hooks have the given bodies (statements on one line, or joined by newlines)."""
    indent = "\n        "
    bodies = {"probe": probe.replace("\n", indent), "open": open.replace("\n", indent)}
    return GOOD_PLUGIN.format(name=name, api_level=api_level, **bodies)


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InstallPlugin]:
    """Call with (name, source) to install a plugin for this test; `group`, `distribution`, `version` may be given."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    modules: list[str] = []

    def install(
        name: str,
        source: str,
        *,
        group: str = "runtime.backends.v1",
        distribution: str | None = None,
        version: str = "1.0",
        attribute: str = "plugin",
    ) -> None:
        distribution = distribution or f"fake-{name}"
        module = "fake_" + distribution.replace("-", "_")
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{module}.py,,\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:{attribute}\n")
        modules.append(module)

    yield install
    for module in modules:
        sys.modules.pop(module, None)
