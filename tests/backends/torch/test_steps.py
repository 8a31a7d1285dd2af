"""Whole steps: capture after a first eager run, padding to buckets, faults of contents, memory limits, transfers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.backend import DeviceConfig, InvalidArgument, OutOfMemory, TensorSpec, Unsupported
from runtime.dtypes import FORMATS, Span
from runtime.graph import GraphBuilder, make_region

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(120)]

F32, I32 = FORMATS["f32"], FORMATS["i32"]


class Recorder:
    """Stands in for a device with graphs: what is captured is kept, what is replayed is run again."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def capture(self, work: Any, pool: Any) -> Any:
        self.log.append(f"capture in {pool}")
        log = self.log

        class Graph:
            def replay(self) -> None:
                log.append("replay")
                work()

        return Graph()


def test_a_step_runs_eagerly_once_is_captured_once_and_then_replayed():
    from runtime_torch.calls import Checks
    from runtime_torch.capture import CapturedProgram

    recorder, done = Recorder(), []
    program = CapturedProgram([lambda: done.append(1)], Checks(), recorder, lambda: "the pool")  # type: ignore[arg-type]
    for _ in range(3):
        program.run()
    assert done == [1, 1, 1]
    assert recorder.log == ["synchronize", "capture in the pool", "replay", "replay"]
    assert program.num_replays == 2


def put(device: Any, array: np.ndarray) -> Any:
    spec = TensorSpec(I32 if array.dtype == np.int32 else F32, array.shape)
    buffer = device.allocate(spec)
    device.upload(buffer, memoryview(array).cast("B"), spec).wait()
    return buffer


def get(device: Any, buffer: Any, *shape: int) -> np.ndarray:
    made = np.empty(shape, np.float32)
    device.download(buffer, memoryview(made).cast("B"), TensorSpec(F32, shape)).wait()
    return made


def test_the_sum_before_a_norm_is_taken_in_its_kernel_and_both_are_results(device: Any):
    builder = GraphBuilder("block", {"T": Span(1, 8)})
    a, b = (builder.input(name, "f32", ("T", 48)) for name in "ab")
    total = builder.op("add", a=a, b=b)
    y = builder.op("rms_norm", x=total, weight=builder.weight("w", TensorSpec(F32, (48,))), attrs={"eps": 1e-6})
    builder.output("total", total)
    builder.output("y", y)
    graph = builder.build()
    rng = np.random.default_rng(3)
    values = {name: rng.standard_normal((5, 48)).astype(np.float32) for name in "ab"}
    weight = rng.standard_normal(48).astype(np.float32)
    region = make_region("block", list(graph.nodes), graph.dims, [total, y])
    executable = device.compile(region, {"w": put(device, weight)}, {})
    bound = {name: put(device, value) for name, value in values.items()}
    bound |= {v.name: device.allocate(TensorSpec(F32, (8, 48))) for v in (total, y)}
    before = device.counters()["kernels_run"]
    executable.submit(bound, {"T": 5}).wait()
    assert device.counters()["kernels_run"] - before == 1
    expected = values["a"] + values["b"]
    np.testing.assert_array_equal(get(device, bound[total.name], 5, 48), expected)
    normed = expected / np.sqrt((expected.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(get(device, bound[y.name], 5, 48), normed, rtol=2e-6)
    executable.close()


def test_an_index_out_of_range_is_named_by_the_event_and_writes_nothing(device: Any):
    builder = GraphBuilder("write", {"T": Span(1, 4)})
    k, v = (builder.input(name, "f32", ("T", 8)) for name in "kv")
    slots = builder.input("slots", "i32", ("T",))
    spec = TensorSpec(F32, (2, 2, 4, 1, 8), "kv")
    written = builder.op("kv_write", kv=builder.state("cache", spec), k=k, v=v, slot_mapping=slots)
    builder.output("kv", written)
    graph = builder.build()
    region = make_region("write", list(graph.nodes), graph.dims, [written], graph.state_aliases())
    cache = device.allocate(spec)
    executable = device.compile(region, {"cache": cache}, {})
    ones = np.ones((2, 8), np.float32)
    for wrong, message in (
        ([0, 8], r"slot_mapping\[1\] = 8 does not exist: there are 8 slots in kv, and -1 for nothing"),
        ([-2, 0], r"slot_mapping\[0\] = -2 does not exist"),
        ([3, 3], "slot_mapping holds 3 more than once; every target is written once"),
    ):
        bound = {"k": put(device, ones), "v": put(device, ones), "slots": put(device, np.array(wrong, np.int32))}
        with pytest.raises(InvalidArgument, match=message):
            executable.submit(bound, {"T": 2}).wait()
    assert not get(device, cache, 2, 2, 4, 1, 8).any()
    bound = {"k": put(device, ones), "v": put(device, ones), "slots": put(device, np.array([5, -1], np.int32))}
    executable.submit(bound, {"T": 2}).wait()
    assert get(device, cache, 2, 8, 8).sum() == 16.0
    executable.close()


def test_what_the_manifest_excludes_is_refused_when_it_is_compiled(device: Any):
    builder = GraphBuilder("half", {})
    a = builder.input("a", "f16", (2, 4))
    y = builder.op("add", a=a, b=a)
    builder.output("y", y)
    region = make_region("half", list(builder.build().nodes), {}, [y])
    with pytest.raises(Unsupported, match=r"a\.format f16 is not one of f32"):
        device.compile(region, {}, {})


def test_memory_is_held_to_what_was_asked_for():
    import runtime_torch_cpu

    small = runtime_torch_cpu.plugin.runtime_open(runtime_torch_cpu.INFO, DeviceConfig(memory_bytes=1 << 20))
    buffer = small.allocate(TensorSpec(F32, (1 << 17,)))
    assert small.memory()["device"][0] == 1 << 19
    with pytest.raises(OutOfMemory, match="takes 1048576 bytes, 524288 are free"):
        small.allocate(TensorSpec(F32, (1 << 18,)))
    buffer.close()
    small.allocate(TensorSpec(F32, (1 << 18,)))
    small.close()


def test_an_option_with_an_unknown_value_is_refused():
    import runtime_torch_cpu

    with pytest.raises(InvalidArgument, match=r"option precision = 'f8' of backend torch-cpu; allowed: f32, bf16"):
        runtime_torch_cpu.plugin.runtime_open(runtime_torch_cpu.INFO, DeviceConfig(options={"precision": "f8"}))


def test_a_probe_runs_its_kernel_and_checks_the_answer(device: Any):
    from runtime_torch import probe

    assert probe.measure(device.settings, 0) == 0.0  # on a processor the answer is checked and nothing is measured
