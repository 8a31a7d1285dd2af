"""The native library: RUNTIME_CPU_LIBRARY, or the one beside the package, or built for this run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "support")]

from native_device import open_device  # noqa: E402
from native_library import build  # noqa: E402

from runtime_cpu.device import NativeDevice  # noqa: E402
from runtime_cpu.native import Library, load_library  # noqa: E402


@pytest.fixture(scope="session")
def library() -> Library:
    if "RUNTIME_CPU_LIBRARY" not in os.environ:
        installed = load_library()
        if installed is not None:
            return installed
    return Library(build())


@pytest.fixture(scope="session")
def devices(library: Library) -> Iterator[dict[str, NativeDevice]]:
    """One device per instruction set that this processor can use."""
    opened = {isa: open_device(library, isa) for isa in library.usable_isas}
    yield opened
    for device in opened.values():
        device.close()


@pytest.fixture(scope="session")
def device(devices: dict[str, NativeDevice]) -> NativeDevice:
    """The fastest."""
    return list(devices.values())[-1]
