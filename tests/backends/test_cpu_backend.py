"""The cpu backend comes in through the same door as a stranger's, and holds numpy to the usable cores."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from runtime.backend import ENTRY_POINT_GROUP, Device, DeviceConfig
from runtime.errors import InvalidArgument
from runtime.registry import LoadedBackend, choose, discover


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path) -> LoadedBackend:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return discover([EntryPoint("cpu", "runtime_cpu:plugin", ENTRY_POINT_GROUP)])["cpu"]


def test_the_probe_says_how_many_threads_and_why_and_that_it_is_slow(cpu: LoadedBackend) -> None:
    (device,) = cpu.probe().devices
    assert set(device.details) == {"threads", "threads_reason", "isa"}
    assert device.notices == (
        "no native kernels: this build computes with the numpy reference, which is right and slow",
    )
    assert 1.0 < device.score < 2.0
    assert device.memory_bytes > 1 << 28
    assert cpu.probe().is_cached


def test_an_open_device_limits_numpy_and_closing_it_gives_the_threads_back(cpu: LoadedBackend) -> None:
    import threadpoolctl

    def blas_threads() -> list[int]:
        return [p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]

    (info,) = cpu.probe().devices
    before = blas_threads()
    device = cpu.open(info, DeviceConfig(threads=1))
    assert isinstance(device, Device)
    assert device.info.details["threads"] == "1"
    assert device.info.details["threads_reason"] == "as asked"
    assert set(blas_threads()) <= {1}
    device.close()
    assert blas_threads() == before or not before
    with pytest.raises(InvalidArgument, match="0 threads are none; ask for 1 or more"):
        cpu.open(info, DeviceConfig(threads=0))


def test_its_manifest_covers_every_operation_that_is_no_composite(cpu: LoadedBackend) -> None:
    from runtime.ops import CATALOGUE

    assert {rule.op for rule in cpu.manifest().rules} == {op.key for op in CATALOGUE if not op.is_composite}
    assert cpu.manifest().backend == "cpu"


def test_auto_takes_it_when_it_is_alone(cpu: LoadedBackend) -> None:
    choice = choose(discover([cpu.entry_point]))
    assert (choice.backend.name, choice.why) == ("cpu", "the only backend that can run here")
