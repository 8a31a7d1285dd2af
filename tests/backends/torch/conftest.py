"""The device torch-cpu: the kernels of the torch-based backends in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.backend import DeviceConfig

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "plugin"), str(HERE)]
if importlib.util.find_spec("triton") is not None:
    # Triton decides between compiling and interpreting when it is imported, which other tests may do first
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> Iterator:
    """Products in float32."""
    import runtime_torch_cpu

    opened = runtime_torch_cpu.plugin.runtime_open(runtime_torch_cpu.INFO, DeviceConfig())
    yield opened
    opened.close()


@pytest.fixture
def workers_find_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The plugin under its entry point, in this process and in those that it starts."""
    info = tmp_path / "runtime_torch_cpu-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: runtime-torch-cpu\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[runtime.backends.v1]\ntorch-cpu = runtime_torch_cpu:plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
