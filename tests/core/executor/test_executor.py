"""Running plans: same numbers however the graph is split, and errors that arrive."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backend import (
    DeviceInfo,
    KernelBackend,
    Manifest,
    NullDevice,
    OneOf,
    ReferenceDevice,
    Rule,
    kernel,
    reference_manifest,
)
from runtime.dtypes import FORMATS, Span, TensorSpec, encode
from runtime.errors import ExecutionFailed, InvalidArgument
from runtime.executor import Executor, make_plan
from runtime.graph import Graph, GraphBuilder

F32 = FORMATS["f32"]
HEADS, HEAD_DIM, WIDTH, INNER, VOCAB, BLOCK = 4, 8, 32, 64, 50, 4


class Linear(KernelBackend):
    name, vendor = "linear_only", "tests"

    def probe(self):
        return [DeviceInfo(index=0, name="numpy", memory_bytes=1 << 30, score=0)]

    @kernel("linear@1", weight=("f32", "f16"))
    def linear(self, x, weight, bias=None):
        y = x @ weight.T.astype(np.float32)
        return y if bias is None else y + bias


def llama(weight_format: str = "f32", kv_format: str = "f32") -> Graph:
    dims = {"T": Span(1, 32), "S": Span(1, 4), "Q": Span(2, 5), "P": Span(1, 8), "R": Span(1, 4), "B": Span(1, 16)}
    b = GraphBuilder("llama", dims)
    names = ("token_ids", "positions", "slot_mapping")
    token_ids, positions, slots = (b.input(n, "i32", ("T",)) for n in names)
    batch = {
        "block_table": b.input("block_table", "i32", ("S", "P")),
        "query_start_loc": b.input("query_start_loc", "i32", ("Q",)),
        "seq_lens": b.input("seq_lens", "i32", ("S",)),
    }

    def w(name: str, *shape: int, fmt: str = weight_format):
        return b.weight(name, TensorSpec(FORMATS[fmt], shape))

    table = w("embed", VOCAB, WIDTH)
    x = b.op("embed", name="embed", token_ids=token_ids, weight=table)
    inv_freq = b.constant("inv_freq", 100.0 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2)))
    for i in range(2):
        name = f"layers.{i}"
        x, _ = b.op(
            "decoder_layer",
            name=name,
            x=x,
            attn_norm=w(f"{name}.an", WIDTH, fmt="f32"),
            q_weight=w(f"{name}.q", HEADS * HEAD_DIM, WIDTH),
            k_weight=w(f"{name}.k", 2 * HEAD_DIM, WIDTH),
            v_weight=w(f"{name}.v", 2 * HEAD_DIM, WIDTH),
            positions=positions,
            inv_freq=inv_freq,
            slot_mapping=slots,
            kv=b.state(f"{name}.kv", TensorSpec(FORMATS[kv_format], (2, "B", BLOCK, 2, HEAD_DIM), "kv")),
            o_weight=w(f"{name}.o", WIDTH, HEADS * HEAD_DIM),
            ffn_norm=w(f"{name}.fn", WIDTH, fmt="f32"),
            gate_weight=w(f"{name}.g", INNER, WIDTH),
            up_weight=w(f"{name}.u", INNER, WIDTH),
            down_weight=w(f"{name}.d", WIDTH, INNER),
            **batch,
            attrs={
                "eps": 1e-5,
                "head_dim": HEAD_DIM,
                "num_heads": HEADS,
                "num_kv_heads": 2,
                "scale": HEAD_DIM**-0.5,
                "kind": "silu",
            },
        )
    x = b.op("gather_rows", name="last", x=x, rows=b.input("logits_rows", "i32", ("R",)))
    b.output("logits", b.op("linear", name="lm_head", x=x, weight=table))
    return b.build()


def weights_of(graph: Graph):
    rng = np.random.default_rng(5)
    stored = {}
    for name, value in graph.weights.items():
        values = rng.standard_normal(value.spec.shape) / np.sqrt(value.spec.shape[-1])
        stored[name] = (value.spec, memoryview(encode(value.spec.format, values.astype(np.float32))))
    return stored.__getitem__


def step(executor: Executor, token_ids: list[int], start: int) -> np.ndarray:
    stop = start + len(token_ids)
    positions = np.arange(start, stop, dtype=np.int32)
    blocks = np.array([3, 1, 4, 0], np.int32)
    used = -(-stop // BLOCK)
    inputs = {
        "token_ids": np.array(token_ids, np.int32),
        "positions": positions,
        "slot_mapping": blocks[positions // BLOCK] * BLOCK + positions % BLOCK,
        "block_table": blocks[None, :used],
        "query_start_loc": np.array([0, len(token_ids)], np.int32),
        "seq_lens": np.array([stop], np.int32),
        "logits_rows": np.array([len(token_ids) - 1], np.int32),
    }
    return executor.run(inputs, {"T": len(token_ids), "S": 1, "Q": 2, "P": used, "R": 1})["logits"]


def on_the_host(graph: Graph) -> Executor:
    plan = make_plan(graph, {"cpu": reference_manifest("cpu")}, fallback="forbid")
    return Executor(plan, {"cpu": ReferenceDevice()}, weights_of(graph), {"B": 8})


def split(graph: Graph) -> Executor:
    backend = Linear()
    device = backend.runtime_open(backend.probe()[0], None)
    plan = make_plan(graph, {"linear_only": backend.manifest()})
    return Executor(plan, {"linear_only": device}, weights_of(graph), {"B": 8})


def test_prefill_in_one_go_equals_token_by_token():
    tokens = [7, 3, 41, 0, 12, 9]
    whole = step(on_the_host(llama()), tokens, 0)
    stepwise = on_the_host(llama())
    for position, token in enumerate(tokens):
        last = step(stepwise, [token], position)
    assert whole.shape == (1, VOCAB)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(last, whole, atol=1e-5)


@pytest.mark.parametrize("weight_format", ["f32", "f16", "q8_0"])
def test_a_split_graph_gives_what_the_host_gives(weight_format):
    graph = llama(weight_format)
    one, other = on_the_host(graph), split(graph)
    np.testing.assert_allclose(step(other, [7, 3, 41], 0), step(one, [7, 3, 41], 0), atol=1e-5)
    np.testing.assert_allclose(step(other, [5], 3), step(one, [5], 3), atol=1e-5)
    assert other.counters()["kernels_run"] == one.counters()["kernels_run"]
    assert 0 < other.host_share < 1


@pytest.mark.parametrize(("kv_format", "tolerance"), [("f16", 2e-3), ("bf16", 2e-2), ("f8_e4m3", 0.2)])
def test_a_narrower_kv_cache_changes_little(kv_format, tolerance):
    exact = step(on_the_host(llama()), [7, 3, 41, 8], 0)
    narrow = step(on_the_host(llama(kv_format=kv_format)), [7, 3, 41, 8], 0)
    difference = np.abs(narrow - exact).max()
    assert 0 < difference < tolerance


def test_dimensions_outside_the_plan_are_refused():
    executor = on_the_host(llama())
    with pytest.raises(InvalidArgument, match=r"dimension T = 33 is outside the plan of llama: 1\.\.32"):
        executor.run({}, {"T": 33, "S": 1, "Q": 2, "P": 1, "R": 1})


def test_inputs_that_do_not_fit_are_refused_before_anything_runs():
    b = GraphBuilder("tiny", {"T": Span(1, 4)})
    b.output("y", b.op("softcap", x=b.input("x", "f32", ("T", 2)), attrs={"cap": 1.0}))
    executor = Executor(make_plan(b.build(), {"cpu": reference_manifest()}), {"cpu": ReferenceDevice()})
    with pytest.raises(InvalidArgument, match=r"input 'x' has shape \[3, 2\], the step needs f32\[2, 2\]"):
        executor.run({"x": np.zeros((3, 2), np.float32)}, {"T": 2})
    with pytest.raises(InvalidArgument, match="input 'x' has type int64"):
        executor.run({"x": np.zeros((2, 2), np.int64)}, {"T": 2})
    with pytest.raises(InvalidArgument, match="takes x; missing: x, unknown: z"):
        executor.run({"z": np.zeros((2, 2))}, {"T": 2})
    with pytest.raises(InvalidArgument, match=r"needs a value for dimension 'T' \(1\.\.4\)"):
        executor.run({"x": np.zeros((2, 2))}, {})
    assert executor.counters()["kernels_run"] == 0


class Broken(Linear):
    name = "broken"

    @kernel("linear@1")
    def linear(self, x, weight, bias=None):
        if x[0, 0] < 0:
            raise ZeroDivisionError("no such number")
        return x @ weight.T


def tiny_linear() -> Graph:
    b = GraphBuilder("tiny", {"T": Span(1, 4)})
    x = b.input("x", "f32", ("T", 2))
    b.output("y", b.op("linear", name="proj", x=x, weight=b.weight("w", TensorSpec(F32, (2, 2)))))
    return b.build()


def test_an_event_carries_the_error_of_a_kernel_and_the_next_run_works():
    backend = Broken()
    device = backend.runtime_open(backend.probe()[0], None)
    plan = make_plan(tiny_linear(), {"broken": backend.manifest()}, fallback="forbid")
    executor = Executor(plan, {"broken": device}, lambda name: (TensorSpec(F32, (2, 2)), np.eye(2, dtype=np.float32)))
    with pytest.raises(ExecutionFailed) as caught:
        executor.run({"x": np.array([[-1.0, 2.0]])}, {"T": 1})
    assert str(caught.value) == (
        "kernel Broken.linear failed at node proj (linear@1) with x f32[1, 2], weight f32[2, 2]: "
        "ZeroDivisionError: no such number"
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert executor.run({"x": np.array([[1.0, 2.0]])}, {"T": 1})["y"].tolist() == [[1.0, 2.0]]


def test_a_weight_of_another_shape_is_refused():
    plan = make_plan(tiny_linear(), {"cpu": reference_manifest()})
    with pytest.raises(InvalidArgument, match=r"weight 'w' is f32\[2, 3\], the graph expects f32\[2, 2\]"):
        Executor(plan, {"cpu": ReferenceDevice()}, lambda name: (TensorSpec(F32, (2, 3)), bytes(24)))


def test_a_device_that_is_not_open_is_an_error():
    plan = make_plan(tiny_linear(), {"acme": Manifest("acme", rules=(Rule("linear@1"),))})
    with pytest.raises(InvalidArgument, match="uses device 'acme', which is not open; open: cpu"):
        Executor(plan, {"cpu": ReferenceDevice()})


def test_progress_counts_bytes_of_weights():
    graph, seen = llama(), []
    plan = make_plan(graph, {"cpu": reference_manifest()})
    Executor(
        plan, {"cpu": ReferenceDevice()}, weights_of(graph), {"B": 8}, lambda done, total: seen.append((done, total))
    )
    assert len(seen) == len(graph.weights)
    assert seen[-1] == (80640, 80640)


def test_a_weight_in_two_formats_is_loaded_in_both():
    graph = llama("q8_0")
    acme = Manifest("acme", rules=(Rule("linear@1", (OneOf("weight.format", ("f32",)),)),))
    plan = make_plan(graph, {"acme": acme})
    assert plan.placements.converted["embed:f32"] == "embed"
    assert set(plan.graph.weights) >= {"embed", "embed:f32"}


def test_boundary_buffers_are_shared_by_values_that_never_meet():
    executor = split(llama())
    # 2 layers: 7 products each and lm_head read their input from the host and give it back
    assert len(executor.plan.transfers) > 20
    assert executor._boundary is not None
    assert executor._boundary.num_buffers < len(executor.plan.transfers)


def test_a_null_device_runs_everything_and_computes_nothing():
    graph = llama("q8_0")
    device = NullDevice()
    plan = make_plan(graph, {"null": device.manifest}, fallback="forbid")
    executor = Executor(plan, {"null": device}, weights_of(graph), {"B": 8})
    assert step(executor, [1, 2, 3], 0).tolist() == [[0.0] * VOCAB]
    assert executor.counters()["kernels_run"] == 5  # embed, two whole layers, gather_rows, lm_head
    assert executor.counters()["host_compute_ns"] == 0


def test_closing_twice_is_harmless():
    executor = on_the_host(llama())
    executor.close()
    executor.close()


def softcaps(cap: float) -> Graph:
    b = GraphBuilder(f"softcap {cap}", {"T": Span(1, 4)})
    b.output("y", b.op("softcap", x=b.input("x", "f32", ("T", 2)), attrs={"cap": cap}))
    return b.build()


def test_an_output_that_is_kept_goes_to_the_next_graph_without_passing_the_host():
    device, elsewhere = ReferenceDevice(), ReferenceDevice()
    manifests = {"cpu": reference_manifest()}
    first, second = (Executor(make_plan(softcaps(c), manifests), {"cpu": device}) for c in (1.0, 2.0))
    apart = Executor(make_plan(softcaps(2.0), manifests), {"cpu": elsewhere})
    x = np.array([[0.5, -3.0]], np.float32)
    fetched, kept = first.run_keeping(["y"], {"x": x}, {"T": 1})
    assert fetched == {}
    expected = 2 * np.tanh(np.tanh(x) / 2)
    before = device.counters()["bytes_downloaded"], device.counters()["bytes_uploaded"]
    np.testing.assert_allclose(second.run({"x": kept["y"]}, {"T": 1})["y"], expected, atol=1e-6)
    after = device.counters()["bytes_downloaded"], device.counters()["bytes_uploaded"]
    assert (after[0] - before[0], after[1] - before[1]) == (8, 0)
    np.testing.assert_allclose(kept["y"].numpy(), np.tanh(x), atol=1e-6)
    np.testing.assert_allclose(apart.run({"x": kept["y"]}, {"T": 1})["y"], expected, atol=1e-6)
    with pytest.raises(InvalidArgument, match=r"input 'x' is f32\[1, 2\], the step needs f32\[2, 2\]"):
        second.run({"x": kept["y"]}, {"T": 2})
