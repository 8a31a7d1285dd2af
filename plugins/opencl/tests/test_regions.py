"""Whole regions: one sequence without a look back, memory shared by liveness, and faults that come with the event."""

from __future__ import annotations

import numpy as np
import pytest
from single import Case

from runtime.backend import InvalidArgument, Manifest, Span, TensorSpec, Unsupported
from runtime.dtypes import FORMATS, encode
from runtime.executor import Executor, make_plan
from runtime.graph import Graph, GraphBuilder, make_region
from runtime.ops import CATALOGUE

HEADS, KV_HEADS, HEAD_DIM, WIDTH, INNER, BLOCK = 4, 2, 16, 64, 96, 4
DIMS = {"T": Span(1, 16), "S": Span(1, 3), "Q": Span(2, 4), "P": Span(1, 8), "B": Span(1, 12)}


def layer() -> Graph:
    """One composite layer of a llama, with a cache."""
    b = GraphBuilder("layer", DIMS)
    shapes = {
        "attn_norm": ("f32", (WIDTH,)),
        "q_weight": ("q8_0", (HEADS * HEAD_DIM, WIDTH)),
        "k_weight": ("q4_0", (KV_HEADS * HEAD_DIM, WIDTH)),
        "v_weight": ("f16", (KV_HEADS * HEAD_DIM, WIDTH)),
        "o_weight": ("f32", (WIDTH, HEADS * HEAD_DIM)),
        "ffn_norm": ("f32", (WIDTH,)),
        "gate_weight": ("q8_0", (INNER, WIDTH)),
        "up_weight": ("q8_0", (INNER, WIDTH)),
        "down_weight": ("q8_0", (WIDTH, INNER)),
    }
    weights = {port: b.weight(port, TensorSpec(FORMATS[f], shape)) for port, (f, shape) in shapes.items()}
    y, _ = b.op(
        "decoder_layer",
        x=b.input("x", "f32", ("T", WIDTH)),
        **weights,
        positions=b.input("positions", "i32", ("T",)),
        inv_freq=b.constant("inv_freq", 100.0 ** (-np.arange(HEAD_DIM // 2) / 8)),
        slot_mapping=b.input("slot_mapping", "i32", ("T",)),
        kv=b.state("kv", TensorSpec(FORMATS["f16"], (2, "B", BLOCK, KV_HEADS, HEAD_DIM), "kv")),
        block_table=b.input("block_table", "i32", ("S", "P")),
        query_start_loc=b.input("query_start_loc", "i32", ("Q",)),
        seq_lens=b.input("seq_lens", "i32", ("S",)),
        attrs={
            "eps": 1e-5,
            "head_dim": HEAD_DIM,
            "num_heads": HEADS,
            "num_kv_heads": KV_HEADS,
            "scale": 0.25,
            "kind": "silu",
        },
    )
    b.output("y", y)
    return b.build()


def weights_of(graph: Graph):
    rng = np.random.default_rng(5)
    stored = {}
    for name, value in graph.weights.items():
        values = rng.standard_normal(value.spec.resolve({})).astype(np.float32) * 0.1
        stored[name] = (value.spec, memoryview(encode(value.spec.format, values)))
    return stored.__getitem__


def step(*parts: tuple[int, int, list[int]]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """(queries, keys, blocks) of each sequence -> inputs and sizes."""
    positions = np.concatenate([np.arange(keys - queries, keys) for queries, keys, _ in parts])
    slots = [b[p // BLOCK] * BLOCK + p % BLOCK for q, k, b in parts for p in range(k - q, k)]
    width = max(len(b) for _, _, b in parts)
    inputs = {
        "x": np.random.default_rng(7).standard_normal((len(slots), WIDTH)).astype(np.float32),
        "positions": positions.astype(np.int32),
        "slot_mapping": np.array(slots, np.int32),
        "block_table": np.array([[*b, *[77] * (width - len(b))] for _, _, b in parts], np.int32),
        "query_start_loc": np.cumsum([0] + [q for q, _, _ in parts]).astype(np.int32),
        "seq_lens": np.array([k for _, k, _ in parts], np.int32),
    }
    return inputs, {"T": len(slots), "S": len(parts), "Q": len(parts) + 1, "P": width}


STEPS = [
    step((5, 5, [3, 9]), (1, 1, [0])),
    step((1, 6, [3, 9]), (6, 7, [0, 4]), (1, 1, [11])),
    step((1, 7, [3, 9])),
]


def make_executor(graph: Graph, device=None) -> Executor:
    if device is None:
        from runtime.backend import reference_manifest

        plan, devices = make_plan(graph, {"host": reference_manifest("host")}, state_dims={"B": 12}), {}
    else:
        plan = make_plan(graph, {"opencl": device.manifest}, fallback="forbid", state_dims={"B": 12})
        devices = {"opencl": device}
    return Executor(plan, devices, weights_of(graph), {"B": 12})


def test_a_composite_layer_is_one_region_and_agrees_over_ragged_steps(device) -> None:
    graph = layer()
    ours, reference = make_executor(graph, device), make_executor(graph)
    assert ours.plan.summary.line().startswith("all ")
    assert [r.device for r in ours.plan.regions] == ["opencl"]
    for inputs, dims in STEPS:
        got, expected = ours.run(inputs, dims)["y"], reference.run(inputs, dims)["y"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    assert ours.host_share == 0.0
    ours.close()
    reference.close()


def test_step_inputs_go_up_once_and_only_results_come_down(device) -> None:
    ours = make_executor(layer(), device)
    inputs, dims = STEPS[1]
    before = device.counters()
    y = ours.run(inputs, dims)["y"]
    after = device.counters()
    assert after["bytes_uploaded"] - before["bytes_uploaded"] == sum(a.nbytes for a in inputs.values())
    assert after["bytes_downloaded"] - before["bytes_downloaded"] == y.nbytes
    assert after["kernels_run"] - before["kernels_run"] > len(ours.plan.regions[0].region.nodes)
    ours.close()


def test_intermediates_share_memory_and_give_it_back(device) -> None:
    free, _ = device.memory()["device"]
    ours = make_executor(layer(), device)
    (executable,) = ours._executables
    intermediates = 16 * 4 * (WIDTH * 5 + HEADS * HEAD_DIM * 3 + KV_HEADS * HEAD_DIM * 3 + 3 * INNER)
    assert executable.pool_bytes < intermediates / 2
    assert "linear@1" in executable.fingerprint
    ours.close()
    assert device.memory()["device"] == (free, device.memory()["device"][1])


def test_poisoned_memory_leaves_no_trace(device) -> None:
    ours = make_executor(layer(), device)
    inputs, dims = STEPS[0]
    clean = ours.run(inputs, dims)["y"]
    (executable,) = ours._executables
    for buffer in set(executable._pool.values()):
        size = buffer.nbytes // 4
        device.upload(
            buffer, memoryview(np.full(size, np.nan, "f4").tobytes()), TensorSpec(FORMATS["f32"], (size,))
        ).wait()
    np.testing.assert_array_equal(ours.run(inputs, dims)["y"], clean)
    ours.close()


def test_a_refused_step_changes_no_state_and_the_next_one_works(device) -> None:
    graph = layer()
    ours = make_executor(graph, device)
    kv_spec = TensorSpec(FORMATS["f16"], (2 * 12 * BLOCK * KV_HEADS * HEAD_DIM,))
    kv = ours._resident["opencl"]["kv"]

    def cache() -> bytes:
        data = bytearray(kv_spec.nbytes())
        device.download(kv, memoryview(data), kv_spec).wait()
        return bytes(data)

    first = ours.run(*STEPS[0])["y"]
    before = cache()
    assert any(before)
    inputs, dims = STEPS[1]
    for port, values, message in (
        ("block_table", [[3, 12], [0, 4], [11, 0]], r"block_table\[1\] = 12 does not exist: there are 12 blocks in kv"),
        ("seq_lens", [6, 7, 99], r"seq_lens\[2\] = 99 must be from 0 to 8"),
        ("seq_lens", [6, 5, 1], r"seq_lens\[1\] = 5 is less than the queries"),
        ("query_start_loc", [0, 1, 7, 9], r"query_start_loc\[3\] = 9"),
        ("slot_mapping", [13, 1, 2, 3, 16, 17, 18, 48], r"slot_mapping\[7\] = 48 does not exist: there are 48 slots"),
        ("slot_mapping", [13, 1, 2, 3, 16, 17, 18, 13], "slot_mapping holds 13 more than once"),
        ("positions", [5, 1, 2, 3, 4, 5, -6, 0], r"positions\[6\] = -6 does not exist"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            ours.run(inputs | {port: np.array(values, np.int32)}, dims)
        assert cache() == before
    np.testing.assert_array_equal(ours.run(*STEPS[0])["y"], first)
    ours.close()


def contents_refusals() -> list[tuple[str, str]]:
    known = ("embed", "rope", "kv_write", "attention", "gather_rows")
    return [(op, r.rule) for op in known for r in CATALOGUE[f"{op}@1"].refusals if r.values]


@pytest.mark.parametrize(("op", "rule"), contents_refusals())
def test_contents_that_the_catalogue_refuses_are_refused(device, op: str, rule: str) -> None:
    refusal = next(r for r in CATALOGUE[f"{op}@1"].refusals if r.rule == rule)
    inputs = {}
    for port, (fmt, shape) in refusal.specs.items():
        dtype = np.int32 if fmt == "i32" else np.float32
        inputs[port] = np.array(refusal.values.get(port, np.zeros(shape)), dtype).reshape(shape)
    with pytest.raises(InvalidArgument, match=f"{op}@1"):
        Case(op, refusal.attrs, **inputs).run(device)


def test_a_cache_that_is_no_state_is_copied_before_it_is_written(device) -> None:
    b = GraphBuilder("copied", {})
    spec = TensorSpec(FORMATS["f32"], (2, 2, 2, 1, 4), "kv")
    kv = b._declare("kv", spec, "input")
    k, slots = b.input("k", "f32", (1, 4)), b.input("slots", "i32", (1,))
    b.output("kv_out", b.op("kv_write", kv=kv, k=k, v=k, slot_mapping=slots))
    plan = make_plan(b.build(), {"opencl": device.manifest}, fallback="forbid")
    old = np.arange(32, dtype=np.float32).reshape(2, 2, 2, 1, 4)
    inputs = {"kv": old, "k": np.full((1, 4), -1, np.float32), "slots": np.array([2], np.int32)}
    executor = Executor(plan, {"opencl": device})
    got = executor.run(inputs, {})["kv_out"]
    expected = old.copy()
    expected[:, 1, 0] = -1
    np.testing.assert_array_equal(got, expected)
    executor.close()


def test_a_region_with_an_unknown_operation_is_refused(device) -> None:
    b = GraphBuilder("foreign", {})
    b.output("y", b.op("topk", x=b.input("x", "f32", (2, 8)), attrs={"k": 2})[0])
    graph = b.build()
    region = make_region("foreign", graph.nodes, {}, list(graph.outputs.values()))
    with pytest.raises(Unsupported, match=r"node topk \(topk@1\): no rule in manifest"):
        device.compile(region, {}, {})


def test_the_manifest_reads_back_equal(device) -> None:
    assert Manifest.from_json(device.manifest.to_json()) == device.manifest
