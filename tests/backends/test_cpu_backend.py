"""The cpu backend comes in through the same door as a stranger's, and holds numpy to the usable cores."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from runtime.backend import ENTRY_POINT_GROUP, Device, DeviceConfig
from runtime.errors import InvalidArgument
from runtime.registry import LoadedBackend, choose, discover
from runtime_cpu.native import load_library

built = pytest.mark.skipif(load_library() is None, reason="no native library lies beside the package")
not_built = pytest.mark.skipif(load_library() is not None, reason="a native library lies beside the package")


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path) -> LoadedBackend:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return discover([EntryPoint("cpu", "runtime_cpu:plugin", ENTRY_POINT_GROUP)])["cpu"]


@not_built
def test_the_probe_says_how_many_threads_and_why_and_that_it_is_slow(cpu: LoadedBackend) -> None:
    (device,) = cpu.probe().devices
    assert set(device.details) == {"threads", "threads_reason", "isa"}
    assert device.notices == (
        "no native kernels: this build computes with the numpy reference, which is right and slow",
    )
    assert 1.0 < device.score < 2.0
    assert device.memory_bytes > 1 << 28
    assert cpu.probe().is_cached


@built
def test_the_probe_says_how_many_threads_and_which_instruction_set(cpu: LoadedBackend) -> None:
    library = load_library()
    assert library is not None
    (device,) = cpu.probe().devices
    assert device.details["isa"] == library.usable_isas[-1]
    assert device.notices == ()
    assert 2.0 < device.score < 3.0


@built
def test_native_kernels_keep_keys_and_values_in_f16_and_blocks_of_64_tokens_unless_asked_otherwise(
    cpu: LoadedBackend,
) -> None:
    (layout,) = cpu.manifest().kv_layouts
    assert (layout.formats[0], layout.block_sizes) == ("f16", (64,))


@built
def test_an_instruction_set_can_be_forced_and_a_wrong_one_is_refused(
    cpu: LoadedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    (info,) = cpu.probe().devices
    for options, variable in (({"isa": "base"}, "avx2"), ({}, "base")):
        monkeypatch.setenv("RUNTIME_CPU_ISA", variable)
        device = cpu.open(info, DeviceConfig(threads=1, options=options))
        assert device.info.details["isa"] == "base"
        device.close()
    with pytest.raises(InvalidArgument, match=r"--cpu-isa sse9: there is no such instruction set; usable here: .*base"):
        cpu.open(info, DeviceConfig(options={"isa": "sse9"}))
    monkeypatch.setenv("RUNTIME_CPU_ISA", "mmx")
    with pytest.raises(InvalidArgument, match="RUNTIME_CPU_ISA mmx: there is no such instruction set"):
        cpu.open(info, DeviceConfig())


@not_built
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


@not_built
def test_its_manifest_covers_every_operation_that_is_no_composite(cpu: LoadedBackend) -> None:
    from runtime.ops import CATALOGUE

    assert {rule.op for rule in cpu.manifest().rules} == {op.key for op in CATALOGUE if not op.is_composite}
    assert cpu.manifest().backend == "cpu"


def test_auto_takes_it_when_it_is_alone(cpu: LoadedBackend) -> None:
    choice = choose(discover([cpu.entry_point]))
    assert (choice.backend.name, choice.why) == ("cpu", "the only backend that can run here")
