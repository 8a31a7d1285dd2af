"""An OpenCL device for tests, or the reason why there is none; under RUNTIME_REQUIRE_OPENCL=1 its lack is a failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.backend import DeviceConfig, PluginRejected

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]


@pytest.fixture(scope="session")
def opencl_info():
    """The best device; tests that need one are skipped without it, and fail where one was installed on purpose."""
    from runtime_opencl.probe import probe

    try:
        return max(probe(), key=lambda d: d.score)
    except PluginRejected as error:
        if os.environ.get("RUNTIME_REQUIRE_OPENCL"):
            pytest.fail(f"RUNTIME_REQUIRE_OPENCL is set and no OpenCL device works: {error}", pytrace=False)
        pytest.skip(f"no OpenCL device: {error}")


@pytest.fixture(scope="session")
def device(opencl_info) -> Iterator:
    """One opened device for all tests: its programs are built once."""
    from runtime_opencl.plugin import OpenclBackend

    opened = OpenclBackend().runtime_open(opencl_info, DeviceConfig())
    yield opened
    opened.close()
