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

    with pytest.raises(InvalidArgument, match=r"option precision = 'f8' of backend torch-cpu; allowed: f32, half"):
        runtime_torch_cpu.plugin.runtime_open(runtime_torch_cpu.INFO, DeviceConfig(options={"precision": "f8"}))


def test_a_probe_runs_its_kernel_and_checks_the_answer(device: Any):
    from runtime_torch import probe

    assert probe.measure(device.settings, 0) == 0.0  # on a processor the answer is checked and nothing is measured


def test_a_cache_of_more_than_two_to_the_31_elements_is_written_and_read_where_it_should_be(device: Any):
    """Offsets in 32 bits would wrap; the memory is never touched but in two places, and is taken page by page."""
    import torch

    from runtime_torch.kernels import attention, cache

    width, num_slots = 64, (1 << 25) + 64
    try:
        kv = torch.from_numpy(np.zeros(2 * num_slots * width, np.float16))
    except MemoryError:
        pytest.skip("this machine promises no 8.6 GB of address space")
    k, v = torch.full((1, width), 0.5), torch.full((1, width), 3.0)
    fault = torch.full((1,), 0x7FFFFFFFFFFFFFFF, dtype=torch.int64)
    slot = num_slots - 5
    slots = torch.tensor([slot], dtype=torch.int32)
    cache.kv_write[(1, 2)](k, v, slots, kv, fault, 1, width, num_slots, BR=1, BLOCK=width)
    assert kv[slot * width : (slot + 1) * width].tolist() == [0.5] * width
    assert kv[(num_slots + slot) * width :][:width].tolist() == [3.0] * width
    table, starts = torch.tensor([[slot // 16]], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    length = slot % 16 + 1
    q, y = torch.full((1, width), 8.0), torch.zeros((1, width))
    attention.attention_tiles[(1, 1, 1)](
        *(q, kv, table, starts, torch.tensor([length], dtype=torch.int32), q, q, y, y, y, y, starts, fault),
        *(1, 1, 1, num_slots, 1, 1.0, 1.0, 0.0),
        BLOCK_SIZE=16,
        NUM_KV_HEADS=1,
        GROUP=1,
        HEAD_DIM=width,
        WINDOW=0,
        CAUSAL=True,
        SOFTCAP=False,
        SINKS=False,
        SLOPES=False,
        MODE=0,
        SEQS=16,
        BQ=16,
        BM=16,
        BK=16,
        BD=width,
        LEAST_STEPS=1,
        PHASES=False,
    )
    np.testing.assert_allclose(y.numpy(), 3.0, rtol=1e-6)  # q k = 256 outweighs the zeros before it


def test_addresses_of_a_captured_step_are_those_of_every_later_batch(device: Any):
    """A replay reads what lies where the capture found it: everything that changes between steps is copied there."""
    from dataclasses import replace

    import runtime_torch_cpu

    from runtime_torch import capture

    settings = replace(runtime_torch_cpu.SETTINGS, capture=True)
    opened = runtime_torch_cpu.TorchCpuBackend(settings).runtime_open(runtime_torch_cpu.INFO, DeviceConfig())
    builder = GraphBuilder("step", {"T": Span(1, 4), "S": Span(1, 4), "Q": Span(2, 5), "P": Span(1, 4)})
    heads = {"num_heads": 1, "num_kv_heads": 1, "head_dim": 16, "scale": 0.25}
    q, starts = builder.input("q", "f32", ("T", 16)), builder.input("starts", "i32", ("Q",))
    kv = builder.state("cache", TensorSpec(F32, (2, 8, 4, 1, 16), "kv"))
    written = builder.op("kv_write", kv=kv, k=q, v=q, slot_mapping=builder.input("slots", "i32", ("T",)))
    table, lengths = builder.input("table", "i32", ("S", "P")), builder.input("lengths", "i32", ("S",))
    inputs = {"block_table": table, "query_start_loc": starts, "seq_lens": lengths}
    y = builder.op("attention", q=q, kv=written, attrs=heads, **inputs)
    builder.output("y", y)
    graph = builder.build()
    region = make_region("step", list(graph.nodes), graph.dims, [y], graph.state_aliases())
    cache = opened.allocate(TensorSpec(F32, (2, 8, 4, 1, 16), "kv"))
    executable = opened.compile(region, {"cache": cache}, {})
    sizes = {"q": (4, 16), "slots": (4,), "table": (4, 4), "starts": (5,), "lengths": (4,)}
    bound = {n: opened.allocate(TensorSpec(F32 if n == "q" else I32, s)) for n, s in sizes.items()}
    bound[y.name] = opened.allocate(TensorSpec(F32, (4, 16)))
    programs: list[capture.Program] = []
    for num_seqs in (3, 4, 3):
        rows = np.arange(num_seqs, dtype=np.int32)
        values = np.full((num_seqs, 16), 1.0 + num_seqs, np.float32) + rows[:, None].astype(np.float32)
        given = {"q": values, "slots": rows * 4, "table": rows[:, None].copy()}
        given |= {"starts": np.arange(num_seqs + 1, dtype=np.int32), "lengths": np.ones(num_seqs, np.int32)}
        for name, array in given.items():
            spec = TensorSpec(F32 if name == "q" else I32, array.shape)
            opened.upload(bound[name], memoryview(array).cast("B"), spec).wait()
        executable.submit(bound, {"T": num_seqs, "S": num_seqs, "Q": num_seqs + 1, "P": 1}).wait()
        np.testing.assert_allclose(get(opened, bound[y.name], num_seqs, 16), values, rtol=1e-6)
        programs += [p for p in executable._programs.values() if p not in programs]
    assert len(programs) == 1
    executable.close()
    opened.close()


def test_what_waits_on_the_host_is_there_for_whoever_reads_it(device: Any):
    """Small uploads of step inputs go out with the step that reads them, or before anybody else does."""
    buffer = put(device, np.arange(6, dtype=np.float32))
    buffer.keeps = True
    for new in (np.full(6, 7.0, np.float32), np.array([1.0, 2.0], np.float32)):
        spec = TensorSpec(F32, new.shape)
        device.upload(buffer, memoryview(new).cast("B"), spec).wait()
        new[:] = -1.0  # the upload has returned: the caller may write over it
        assert buffer.kept(new.nbytes) is not None
    assert get(device, buffer, 6).tolist() == [1.0, 2.0, 7.0, 7.0, 7.0, 7.0]
    assert buffer.kept(1) is None
    other = device.allocate(TensorSpec(F32, (2,)))
    device.upload(buffer, memoryview(np.array([3.0, 4.0], np.float32)).cast("B"), TensorSpec(F32, (2,))).wait()
    device.copy(other, buffer, TensorSpec(F32, (2,))).wait()
    assert get(device, other, 2).tolist() == [3.0, 4.0]


def test_long_sequences_are_read_in_parts_and_merged_by_the_last_one(device: Any):
    """One of 150 keys beside one of 9 and rows of nobody: 4 parts of 3 steps, one part, zeros; no counter is left."""
    from dataclasses import replace

    import runtime_torch_cpu

    from runtime_torch.settings import Tiles

    tiles = Tiles(attention_keys=16, least_part=32, programs=8)
    settings = replace(runtime_torch_cpu.SETTINGS, tiles=tiles)
    opened = runtime_torch_cpu.TorchCpuBackend(settings).runtime_open(runtime_torch_cpu.INFO, DeviceConfig())
    builder = GraphBuilder("long", {"T": Span(1, 4), "S": Span(1, 2), "Q": Span(2, 3), "P": Span(1, 10)})
    q = builder.input("q", "f32", ("T", 16))
    inputs = {n: builder.input(n, "i32", s) for n, s in (("block_table", ("S", "P")), ("seq_lens", ("S",)))}
    inputs["query_start_loc"] = builder.input("query_start_loc", "i32", ("Q",))
    spec = TensorSpec(F32, (2, 12, 16, 1, 16), "kv")
    heads = {"num_heads": 1, "num_kv_heads": 1, "head_dim": 16, "scale": 0.25}
    y = builder.op("attention", q=q, kv=builder.state("cache", spec), attrs=heads, **inputs)
    builder.output("y", y)
    region = make_region("long", list(builder.build().nodes), builder.build().dims, [y])
    rng = np.random.default_rng(4)
    values = {"q": rng.standard_normal((4, 16)).astype(np.float32)}
    values["block_table"] = np.array([[10, 3, 7, 1, 9, 2, 8, 4, 6, 5], [11, *[0] * 9]], np.int32)
    values |= {"seq_lens": np.array([150, 9], np.int32), "query_start_loc": np.array([0, 1, 2], np.int32)}
    kv = rng.standard_normal((2, 12, 16, 1, 16)).astype(np.float32)
    executable = opened.compile(region, {"cache": put(opened, kv)}, {})
    bound = {name: put(opened, value) for name, value in values.items()} | {y.name: put(opened, np.ones((4, 16), "f4"))}
    executable.submit(bound, {"T": 4, "S": 2, "Q": 3, "P": 10}).wait()
    expected = np.zeros((4, 16))
    for s, length in enumerate((150, 9)):
        keys, weighted = kv[:, values["block_table"][s]].reshape(2, -1, 16)[:, :length].astype(np.float64)
        p = np.exp(0.25 * keys @ values["q"][s])
        expected[s] = p @ weighted / p.sum()
    np.testing.assert_allclose(get(opened, bound[y.name], 4, 16), expected, rtol=2e-5, atol=1e-6)
    assert not opened._shared.workspace.zeros(1).any()
    executable.close()
    opened.close()
