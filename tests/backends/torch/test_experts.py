"""Experts: choosing, grouping, and the products of a whole gated network, one by one and fused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.backend import DeviceConfig, InvalidArgument, TensorSpec
from runtime.dtypes import FORMATS, Span, encode
from runtime.graph import GraphBuilder, make_region
from runtime.ops.moe import MOE_ROUTE
from runtime.ops.rounding import EXACT

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(300)]

F32, I32 = FORMATS["f32"], FORMATS["i32"]
HIDDEN, INNER, EXPERTS = 64, 32, 6


@pytest.fixture(scope="module")
def rounded() -> Iterator:
    """Operands rounded to halves, in small tiles, so that experts have several."""
    import runtime_torch_cpu

    from runtime_torch.settings import INTERPRETED

    tiles = replace(INTERPRETED, many_tokens=16, many_rows=16, many_units=1, elements=64, row_elements=1024)
    settings = replace(runtime_torch_cpu.SETTINGS, precision="half", tiles=tiles)
    opened = runtime_torch_cpu.TorchCpuBackend(settings).runtime_open(runtime_torch_cpu.INFO, DeviceConfig())
    yield opened
    opened.close()


def put(device: Any, array: np.ndarray, fmt: str = "") -> Any:
    if fmt:
        spec = TensorSpec(FORMATS[fmt], array.shape)
        return device.load_weight(spec, memoryview(encode(FORMATS[fmt], array)), {})
    spec = TensorSpec(I32 if array.dtype == np.int32 else F32, array.shape)
    buffer = device.allocate(spec)
    device.upload(buffer, memoryview(array).cast("B"), spec).wait()
    return buffer


def get(device: Any, buffer: Any, *shape: int, kind: str = "f32") -> np.ndarray:
    made = np.empty(shape, np.int32 if kind == "i32" else np.float32)
    device.download(buffer, memoryview(made).cast("B"), TensorSpec(FORMATS[kind], shape)).wait()
    return made


def run(device: Any, builder: GraphBuilder, outputs: list[Any], given: dict[str, Any], tokens: int) -> tuple[list, int]:
    """Contents of the outputs, and how many launches made them."""
    for i, value in enumerate(outputs):
        builder.output(f"out{i}", value)
    graph = builder.build()
    region = make_region("experts", list(graph.nodes), graph.dims, outputs)
    names = {v.name for v in region.resident}
    executable = device.compile(region, {n: b for n, b in given.items() if n in names}, {})
    bound = {n: b for n, b in given.items() if n not in names}
    shapes = [v.spec.resolve({"T": tokens}) for v in outputs]
    bound |= {v.name: device.allocate(TensorSpec(v.spec.format, s)) for v, s in zip(outputs, shapes)}
    before = device.counters()["kernels_run"]
    try:
        executable.submit(bound, {"T": tokens}).wait()
    finally:
        executable.close()
    made = [get(device, bound[v.name], *s, kind=v.spec.format.name) for v, s in zip(outputs, shapes)]
    return made, device.counters()["kernels_run"] - before


def route(device: Any, logits: np.ndarray, top_k: int, bias: np.ndarray | None = None, **attrs: Any) -> list:
    builder = GraphBuilder("route", {"T": Span(1, 64)})
    inputs = {"logits": builder.input("logits", "f32", ("T", logits.shape[1]))}
    given = {"logits": put(device, logits)}
    if bias is not None:
        inputs["bias"] = builder.weight("bias", TensorSpec(F32, bias.shape))
        given["bias"] = put(device, bias)
    settings = {"top_k": top_k, "score": "softmax", "normalize": True} | attrs
    outputs = list(builder.op("moe_route", attrs=settings, **inputs))
    made, launches = run(device, builder, outputs, given, len(logits))
    assert launches == 1
    return made


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "softmax_selected"])
@pytest.mark.parametrize(
    ("experts", "top_k", "biased"), [(128, 8, False), (512, 32, True), (5, 5, True), (60, 1, False)]
)
def test_a_row_of_scores_is_routed_in_one_launch(device: Any, score: str, experts: int, top_k: int, biased: bool):
    rng = np.random.default_rng(experts)
    logits = rng.integers(-20, 20, (33, experts)).astype(np.float32) / 4  # with ties
    bias = rng.integers(-3, 3, experts).astype(np.float32) / 8 if biased else None
    normalize, scale = score == "sigmoid", 2.5
    ids, weights = route(device, logits, top_k, bias, score=score, normalize=normalize, scale=scale)
    inputs = {"logits": logits.astype(np.float64)} | ({} if bias is None else {"bias": bias.astype(np.float64)})
    attrs = {"top_k": top_k, "score": score, "normalize": normalize, "scale": scale}
    wanted_ids, wanted = MOE_ROUTE.run_reference(EXACT, inputs, attrs)
    if bias is None:
        np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_allclose(np.sort(weights), np.sort(wanted), rtol=3e-6)
    assert all(len(set(row)) == top_k for row in ids.tolist())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy, which warns of infinities in the data
def test_among_equals_the_lower_expert_is_chosen_and_what_is_no_number_comes_last(device: Any):
    nan, inf = np.nan, np.inf
    logits = np.array([[1, 2, 2, 2], [nan, -inf, nan, 0], [-0.0, 0.0, -1, -0.0], [nan, nan, nan, -inf]], np.float32)
    ids, weights = route(device, logits, 3, score="softmax_selected", normalize=False)
    assert ids.tolist() == [[1, 2, 3], [3, 1, 0], [0, 1, 3], [3, 0, 1]]
    np.testing.assert_allclose(weights[0], 1 / 3, rtol=1e-6)
    assert np.isnan(weights[1]).all()
    # a softmax over a row with NaN or +inf is NaN: all are equal
    ids, weights = route(device, np.array([[3, nan, 5, 4], [3, inf, 5, 4], [-inf, 2, -inf, 1]], np.float32), 3)
    assert ids.tolist() == [[0, 1, 2], [0, 1, 2], [1, 3, 0]]
    assert np.isnan(weights[:2]).all()
    np.testing.assert_allclose(weights[2], [0.7310586, 0.26894143, 0], rtol=1e-6)


def test_rows_of_more_experts_than_a_warp_holds_go_the_long_way(device: Any):
    logits = np.linspace(-1, 1, 2000, dtype=np.float32)[None, ::-1].copy()
    ids, weights = route(device, logits, 2, score="sigmoid", normalize=False)
    assert ids.tolist() == [[0, 1]]
    np.testing.assert_allclose(weights, [[0.7310586, 0.7308618]], rtol=1e-5)


@pytest.mark.parametrize(
    ("num_pairs", "num_experts", "block", "per_program"), [(100, 7, 16, 1), (64, 5, 64, 8), (1, 3, 4, 2)]
)
def test_pairs_are_grouped_as_a_stable_sort_would(num_pairs: int, num_experts: int, block: int, per_program: int):
    import runtime_torch_cpu
    import torch

    runtime_torch_cpu.prepare_interpreter()
    from runtime_torch.kernels.moe_route import group_pairs

    ids = np.random.default_rng(num_pairs).integers(0, num_experts, num_pairs).astype(np.int32)
    ids[ids == 1] = 2  # an expert without pairs
    order, borders = torch.full((num_pairs,), -1, dtype=torch.int32), torch.zeros(num_experts + 1, dtype=torch.int32)
    grid = (-(-(num_experts + 1) // per_program),)
    group_pairs[grid](torch.from_numpy(ids), order, borders, num_pairs, num_experts, BE=per_program, BLOCK=block)
    assert order.tolist() == np.argsort(ids, kind="stable").tolist()
    assert borders.tolist() == [int((ids < e).sum()) for e in range(num_experts + 1)]


class Network:
    """The gated network of a mixture, with weights in `fmt`."""

    def __init__(self, fmt: str, has_bias: bool, other: str = "", hidden: int = HIDDEN, inner: int = INNER) -> None:
        rng = np.random.default_rng(9)
        shapes = {"gate": (EXPERTS, inner, hidden), "up": (EXPERTS, inner, hidden), "down": (EXPERTS, hidden, inner)}
        self.formats = {"gate": fmt, "up": other or fmt, "down": fmt}
        self.weights = {n: rng.standard_normal(s).astype(np.float32) / 4 for n, s in shapes.items()}
        self.biases = {n: rng.standard_normal(s[:2]).astype(np.float32) for n, s in shapes.items()} if has_bias else {}
        self.hidden = hidden

    def graph(self, exposed: tuple[str, ...], top_k: int) -> tuple[GraphBuilder, list[Any]]:
        """The graph; values in `exposed` are outputs too, and therefore cannot be fused away."""
        builder = GraphBuilder("experts", {"T": Span(1, 512)})
        x = builder.input("x", "f32", ("T", self.hidden))
        ids = builder.input("ids", "i32", ("T", top_k))
        shares = builder.input("shares", "f32", ("T", top_k))
        made = self.build(builder, x, ids, shares)
        return builder, [made[name] for name in ("y", *exposed)]

    def build(self, builder: GraphBuilder, x: Any, ids: Any, shares: Any) -> dict[str, Any]:
        """The nodes' values: gate, up, h, y."""
        made = {name: self._product(builder, name, x, ids) for name in ("gate", "up")}
        made["h"] = builder.op("glu", gate=made["gate"], up=made["up"], attrs={"kind": "silu"})
        return made | {"y": self._product(builder, "down", made["h"], ids, expert_weights=shares)}

    def given(self, device: Any) -> dict[str, Any]:
        """The weights on a device, by name."""
        made = {f"{n}.w": put(device, w, self.formats[n]) for n, w in self.weights.items()}
        return made | {f"{n}.b": put(device, b) for n, b in self.biases.items()}

    def _product(self, builder: GraphBuilder, name: str, x: Any, ids: Any, **more: Any) -> Any:
        weight = builder.weight(f"{name}.w", TensorSpec(FORMATS[self.formats[name]], self.weights[name].shape))
        if self.biases:
            more["bias"] = builder.weight(f"{name}.b", TensorSpec(F32, self.biases[name].shape))
        attrs = {"per_expert_input": name == "down"}
        return builder.op("moe_linear", x=x, weight=weight, expert_ids=ids, attrs=attrs, **more)

    def run(self, device: Any, ids: np.ndarray, exposed: tuple[str, ...] = ()) -> tuple[np.ndarray, int]:
        """The result for rows of random numbers, and how many launches it took, without the check of `ids`."""
        rng = np.random.default_rng(3)
        given = {"ids": put(device, ids), "x": put(device, rng.standard_normal((len(ids), self.hidden), np.float32))}
        given["shares"] = put(device, rng.random(ids.shape, np.float32))
        given |= self.given(device)
        builder, outputs = self.graph(exposed, ids.shape[1])
        made, launches = run(device, builder, outputs, given, len(ids))
        return made[0], launches - 1


def random_ids(tokens: int, top_k: int) -> np.ndarray:
    rng = np.random.default_rng(tokens)
    return np.stack([rng.permutation(EXPERTS - 1)[:top_k] for _ in range(tokens)]).astype(np.int32)  # the last has none


@pytest.mark.parametrize(("fmt", "has_bias"), [("q8_0", False), ("bf16", True), ("q4_1", True)])
@pytest.mark.parametrize("tokens", [3, 40])
def test_a_fused_network_gives_the_bits_of_its_single_products(rounded: Any, fmt: str, has_bias: bool, tokens: int):
    network, ids = Network(fmt, has_bias), random_ids(tokens, 2)
    fused, num_fused = network.run(rounded, ids)
    single, num_single = network.run(rounded, ids, ("gate", "up", "h"))
    np.testing.assert_array_equal(fused, single)
    # few: gate and up with their glu, down with its sum
    # many: grouping, x as operands, gate and up with their glu, h as operands (bf16 is made as such), down, the sum
    assert (num_fused, num_single) == ((2, 4) if tokens == 3 else (5 if fmt == "bf16" else 6, 11))


@pytest.mark.parametrize(("tokens", "num_launches"), [(1, 3), (4, 3), (33, 7)])
def test_a_layer_of_experts_is_few_launches(rounded: Any, tokens: int, num_launches: int):
    network = Network("q4_0", False)
    builder = GraphBuilder("layer", {"T": Span(1, 512)})
    x, logits = builder.input("x", "f32", ("T", HIDDEN)), builder.input("logits", "f32", ("T", EXPERTS))
    route = {"top_k": 2, "score": "softmax", "normalize": True}
    ids, shares = builder.op("moe_route", logits=logits, attrs=route)
    y = network.build(builder, x, ids, shares)["y"]
    given = network.given(rounded) | {"x": put(rounded, np.ones((tokens, HIDDEN), np.float32))}
    given["logits"] = put(rounded, np.ones((tokens, EXPERTS), np.float32))
    assert run(rounded, builder, [y], given, tokens)[1] == num_launches


def test_products_in_two_formats_stay_apart(device: Any):
    _, launches = Network("q8_0", False, "q4_0").run(device, random_ids(3, 2))
    assert launches == 4


@pytest.mark.parametrize("fmt", ["q4_0", "q5_1", "q8_0", "mxfp4", "bf16", "f16", "f8_e4m3_g128"])
@pytest.mark.parametrize("tokens", [2, 24])
def test_a_network_in_every_kind_of_weight_is_the_sum_of_its_experts(rounded: Any, fmt: str, tokens: int):
    network, ids = Network(fmt, True, hidden=128, inner=128), random_ids(tokens, 3)
    y, _ = network.run(rounded, ids)
    rng = np.random.default_rng(3)
    x, shares = rng.standard_normal((tokens, 128), np.float32), rng.random(ids.shape, np.float32)
    weights = {n: FORMATS[fmt].decode(encode(FORMATS[fmt], w), w.shape) for n, w in network.weights.items()}
    expected = np.zeros((tokens, 128))
    for token, chosen in enumerate(ids):
        for expert, share in zip(chosen, shares[token]):
            gate, up = (weights[n][expert] @ x[token] + network.biases[n][expert] for n in ("gate", "up"))
            h = gate / (1 + np.exp(-gate)) * up
            expected[token] += share * (weights["down"][expert] @ h + network.biases["down"][expert])
    error = np.sqrt(((y - expected) ** 2).mean() / (expected**2).mean())
    assert error < (1e-6 if tokens == 2 else 4e-3 if fmt == "bf16" else 5e-4)


@pytest.mark.parametrize("tokens", [5, 40])
def test_all_tokens_may_choose_one_expert(device: Any, rounded: Any, tokens: int):
    network, ids = Network("f32", True), np.full((tokens, 1), 4, np.int32)
    y, _ = network.run(device, ids)
    rng = np.random.default_rng(3)
    x, shares = rng.standard_normal((tokens, HIDDEN), np.float32), rng.random(ids.shape, np.float32)
    gate, up = (x @ network.weights[n][4].T + network.biases[n][4] for n in ("gate", "up"))
    expected = (gate / (1 + np.exp(-gate)) * up) @ network.weights["down"][4].T + network.biases["down"][4]
    np.testing.assert_allclose(y, expected * shares, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("tokens", [5, 40])
@pytest.mark.parametrize("wrong", [EXPERTS, -1])
def test_an_expert_that_does_not_exist_is_a_fault_of_the_fused_network_too(device: Any, tokens: int, wrong: int):
    ids = random_ids(tokens, 2)
    ids[1, 1] = wrong
    with pytest.raises(InvalidArgument, match=rf"expert_ids\[3\] = {wrong} does not exist: there are 6 experts"):
        Network("q8_0", False).run(device, ids)
