"""Every way in which OpenCL can be missing is one line with a remedy. No device is needed here."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from runtime.backend import ENTRY_POINT_GROUP, PluginRejected
from runtime.registry import choose, discover
from runtime_opencl import plugin
from runtime_opencl.probe import enumerate_devices, probe, require_abilities
from runtime_opencl.programs import first_error

FOLDER = Path(__file__).resolve().parents[1]


class FakeError(Exception):
    code = -1001


def fake_pyopencl(platforms: Any) -> ModuleType:
    module = ModuleType("pyopencl")
    module.Error = FakeError

    def get_platforms() -> Any:
        if isinstance(platforms, Exception):
            raise platforms
        return platforms

    module.get_platforms = get_platforms
    return module


def fake_device(**facts: Any) -> SimpleNamespace:
    good = {
        "name": "Chip 1 ",
        "available": True,
        "compiler_available": True,
        "endian_little": True,
        "profile": "FULL_PROFILE",
        "max_work_group_size": 1024,
        "local_mem_size": 32768,
    }
    return SimpleNamespace(**good | facts)


def fake_platform(name: str, *devices: Any, error: Exception | None = None) -> SimpleNamespace:
    def get_devices() -> list[Any]:
        if error is not None:
            raise error
        return list(devices)

    return SimpleNamespace(name=name, get_devices=get_devices)


def refusal(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None) -> PluginRejected:
    monkeypatch.setitem(sys.modules, "pyopencl", module)
    with pytest.raises(PluginRejected) as caught:
        probe()
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return caught.value


def test_no_pyopencl(monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal(monkeypatch, None)
    assert str(error) == "pyopencl is not installed; pip install pyopencl"


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for platforms in (FakeError("PLATFORM_NOT_FOUND_KHR"), []):
        error = refusal(monkeypatch, fake_pyopencl(platforms))
        assert error.message.startswith("no OpenCL platform: no driver (ICD) is installed")
        assert "pip install runtime-opencl[pocl]" in str(error)


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    platforms = [fake_platform("Vendor A "), fake_platform("Vendor B", error=FakeError("DEVICE_NOT_FOUND"))]
    error = refusal(monkeypatch, fake_pyopencl(platforms))
    assert error.message == "no OpenCL device: the platforms Vendor A, Vendor B have none"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"available": False}, "its driver says that it is not available"),
        ({"compiler_available": False}, "its driver has no compiler for OpenCL C"),
        ({"endian_little": False}, "it is big-endian"),
        ({"profile": "EMBEDDED_PROFILE"}, "it has EMBEDDED_PROFILE"),
        ({"max_work_group_size": 64}, "groups of 64 work-items at most; 256 are needed"),
        ({"local_mem_size": 1024}, "1024 bytes of local memory; 16384 are needed"),
    ],
)
def test_a_device_that_lacks_something(monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], reason: str) -> None:
    error = refusal(monkeypatch, fake_pyopencl([fake_platform("Vendor", fake_device(**facts))]))
    assert error.message.startswith(f"Chip 1: {reason}")


def test_halves_need_no_extension() -> None:
    require_abilities(fake_device(extensions="cl_khr_byte_addressable_store"))


def test_devices_are_numbered_over_all_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = fake_device(), fake_device(), fake_device()
    platforms = [fake_platform("A", first, second), fake_platform("B", third)]
    monkeypatch.setitem(sys.modules, "pyopencl", fake_pyopencl(platforms))
    assert enumerate_devices() == [first, second, third]


def test_a_kernel_that_does_not_build_names_file_and_line(opencl_info, monkeypatch: pytest.MonkeyPatch) -> None:
    import runtime_opencl.programs as programs

    read = programs.read_source
    broken = "__kernel void broken(__global float *x) { x[0] = undeclared_name; }\n"
    monkeypatch.setattr(programs, "read_source", lambda name: read(name) + (broken if name == "linear" else ""))
    with pytest.raises(PluginRejected) as caught:
        probe()
    assert "kernel file linear.cl does not build on" in caught.value.message
    assert "undeclared_name" in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_wrong_answer_is_refused(opencl_info, monkeypatch: pytest.MonkeyPatch) -> None:
    import runtime_opencl.programs as programs

    read = programs.read_source
    monkeypatch.setattr(programs, "read_source", lambda name: read(name).replace("* scale;", "* scale * 1.01f;"))
    with pytest.raises(PluginRejected, match="4096 of 4096 rows of its first matrix product are wrong"):
        probe()


def test_the_probe_measures_and_describes(opencl_info) -> None:
    assert opencl_info.score > 0
    assert opencl_info.memory_bytes > 0
    assert set(opencl_info.details) == {"platform", "compute_units", "fp16"}


def test_first_error_of_a_build_log() -> None:
    log = "clBuildProgram failed: BUILD_PROGRAM_FAILURE\n\nBuild on X:\na.cl:3:1: warning: w\na.cl:9:5: error: no such name\n"
    assert first_error(log) == "a.cl:9:5: error: no such name"
    assert first_error("out of luck") == "out of luck"
    assert first_error("") == "no build log"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise ModuleNotFoundError(name='pyopencl')", "pyopencl is not installed"),
        ("raise ImportError('libOpenCL.so.1: cannot open')", "pyopencl cannot be loaded: libOpenCL.so.1: cannot open"),
        (
            "class Error(Exception): pass\ndef get_platforms(): raise Error('PLATFORM_NOT_FOUND_KHR')",
            "no OpenCL platform: no driver",
        ),
    ],
)
def test_a_user_reads_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, reason: str) -> None:
    (tmp_path / "pyopencl.py").write_text(module)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(FOLDER), *sys.path])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = discover([EntryPoint("opencl", "runtime_opencl:plugin", ENTRY_POINT_GROUP)])
    with pytest.raises(PluginRejected) as caught:
        choose(found, "opencl")
    assert str(caught.value).startswith(f"backend 'opencl' cannot run here: {reason}")
    assert "--backend auto; details: runtime doctor opencl" in str(caught.value)


def test_the_plugin_is_found_and_its_facts_are_cheap() -> None:
    info = plugin.runtime_backend_info()
    assert info.name == "opencl"
    assert info.probe_key
    assert plugin.runtime_manifest().backend == "opencl"
