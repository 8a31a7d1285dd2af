"""The reference device: stored weights in place, decoded as far as memory allows, same numbers either way."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backend import Device, ReferenceDevice, reference_manifest
from runtime.dtypes import FORMATS, Span, TensorSpec, encode
from runtime.errors import InvalidArgument, OutOfMemory
from runtime.executor import Executor, make_plan
from runtime.graph import GraphBuilder
from runtime.ops import CATALOGUE, EXACT

F32 = FORMATS["f32"]


def run(build, inputs, weights=None, dims=None, **options):
    """Build a one-device graph, run it once, and return outputs and device."""
    b = GraphBuilder("case", {"T": Span(1, 64)})
    build(b)
    device = ReferenceDevice(**options)
    plan = make_plan(b.build(), {"cpu": device.manifest}, fallback="forbid")
    executor = Executor(plan, {"cpu": device}, (weights or {}).__getitem__, {})
    return executor.run(inputs, dims or {"T": len(next(iter(inputs.values())))}), device


def quantized(fmt: str, *shape: int, seed: int = 0):
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    data = encode(FORMATS[fmt], values)
    spec = TensorSpec(FORMATS[fmt], shape)
    return (spec, memoryview(data)), FORMATS[fmt].decode(data, shape).astype(np.float64)


def test_it_is_a_device():
    assert isinstance(ReferenceDevice(), Device)


def test_its_manifest_has_every_operation_but_composites():
    rules = {rule.op for rule in reference_manifest().rules}
    assert rules == {op.key for op in CATALOGUE if not op.is_composite}


@pytest.mark.parametrize("budget", [0, 10_000, 1 << 30])
@pytest.mark.parametrize("fmt", ["q8_0", "q4_0", "f16", "bf16", "f32"])
def test_linear_is_exact_whatever_the_budget(fmt, budget):
    weight, decoded = quantized(fmt, 300, 1024)
    bias = np.linspace(-1, 1, 300, dtype=np.float32)
    x = np.random.default_rng(1).standard_normal((3, 1024)).astype(np.float32)

    def build(b):
        w = b.weight("w", weight[0])
        bias_value = b.constant("bias", bias)
        b.output("y", b.op("linear", x=b.input("x", "f32", ("T", 1024)), weight=w, bias=bias_value))

    made, _ = run(build, {"x": x}, {"w": weight}, decoded_bytes=budget)
    (expected,) = CATALOGUE["linear@1"].run_reference(
        EXACT, {"x": x.astype(np.float64), "weight": decoded, "bias": bias.astype(np.float64)}, {}
    )
    np.testing.assert_array_equal(made["y"], expected.astype(np.float32))


def test_embed_decodes_only_the_rows_it_needs(monkeypatch):
    weight, decoded = quantized("q8_0", 1000, 64)
    rows = []
    original = type(FORMATS["q8_0"]).decode

    def counting(self, data, shape):
        rows.append(shape[0])
        return original(self, data, shape)

    monkeypatch.setattr(type(FORMATS["q8_0"]), "decode", counting)

    def build(b):
        ids = b.input("ids", "i32", ("T",))
        b.output("x", b.op("embed", token_ids=ids, weight=b.weight("w", weight[0]), attrs={"scale": 2.0}))

    made, _ = run(build, {"ids": np.array([999, 3, 999], np.int32)}, {"w": weight})
    assert rows == [2]
    np.testing.assert_allclose(made["x"], 2 * decoded[[999, 3, 999]], rtol=1e-7)


def test_a_token_that_does_not_exist_is_refused():
    weight, _ = quantized("q8_0", 10, 32)

    def build(b):
        b.output("x", b.op("embed", token_ids=b.input("ids", "i32", ("T",)), weight=b.weight("w", weight[0])))

    with pytest.raises(InvalidArgument, match=r"node embed: token id 10 is outside 0\.\.9"):
        run(build, {"ids": np.array([1, 10], np.int32)}, {"w": weight})


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize("combined", [False, True])
def test_experts_equal_their_reference_and_only_chosen_ones_are_decoded(combined, budget):
    weight, decoded = quantized("q8_0", 8, 96, 64)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((5, 64)).astype(np.float32)
    ids = np.array([[1, 6], [6, 1], [6, 3], [1, 3], [3, 6]], np.int32)
    shares = rng.random((5, 2)).astype(np.float32)
    bias = rng.standard_normal((8, 96)).astype(np.float32)
    inputs = {"x": x, "ids": ids} | ({"shares": shares} if combined else {})

    def build(b):
        y = b.op(
            "moe_linear",
            x=b.input("x", "f32", ("T", 64)),
            weight=b.weight("w", weight[0]),
            expert_ids=b.input("ids", "i32", ("T", 2)),
            bias=b.constant("bias", bias),
            expert_weights=b.input("shares", "f32", ("T", 2)) if combined else None,
        )
        b.output("y", y)

    made, device = run(build, inputs, {"w": weight}, decoded_bytes=budget)
    arrays = {"x": x.astype(float), "weight": decoded, "expert_ids": ids.astype(np.int64), "bias": bias.astype(float)}
    if combined:
        arrays["expert_weights"] = shares.astype(float)
    (expected,) = CATALOGUE["moe_linear@1"].run_reference(EXACT, arrays, {})
    np.testing.assert_allclose(made["y"], expected, rtol=1e-6, atol=1e-6)
    # three experts of 96 rows of 64 in float32, and the bias
    assert device._budget.used_bytes == (3 * 96 * 64 * 4 if budget else 0)


def test_weights_are_used_in_place_and_not_copied():
    weight, _ = quantized("q8_0", 4, 32)
    device = ReferenceDevice()
    adopted = device.adopt_host(weight[1], weight[0])
    assert adopted.nbytes == 4 * 34
    assert np.shares_memory(adopted._raw, np.frombuffer(weight[1], np.uint8))
    assert device.counters()["bytes_uploaded"] == 0


def test_bytes_that_do_not_match_the_spec_are_refused():
    with pytest.raises(InvalidArgument, match=r"a weight q8_0\[4, 32\] takes 136 bytes, 135 were given"):
        ReferenceDevice().adopt_host(memoryview(bytes(135)), TensorSpec(FORMATS["q8_0"], (4, 32)))


def test_a_cache_larger_than_the_memory_is_refused_with_numbers():
    spec = TensorSpec(FORMATS["f16"], (2, 1 << 30, 16, 8, 128), "kv")
    with pytest.raises(OutOfMemory, match="ask for a shorter context") as caught:
        ReferenceDevice().allocate(spec)
    assert caught.value.requested_bytes == 2 * (1 << 30) * 16 * 8 * 128 * 2
    assert caught.value.available_bytes > 0


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "f8_e4m3", "q8_0"])
def test_a_cache_holds_what_its_format_can_hold(fmt):
    rows = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    b = GraphBuilder("cache", {"T": Span(1, 8), "B": Span(1, 4), "N": Span(1, 4)})
    x = b.input("x", "f32", ("T", 64))
    kv = b.state("kv", TensorSpec(FORMATS[fmt], (2, "B", 4, 2, 32), "kv"))
    kv = b.op("kv_write", kv=kv, k=x, v=x, slot_mapping=b.input("slots", "i32", ("T",)))
    b.output("data", b.op("kv_export", kv=kv, block_ids=b.input("ids", "i32", ("N",))))
    device = ReferenceDevice()
    executor = Executor(make_plan(b.build(), {"cpu": device.manifest}), {"cpu": device}, None, {"B": 4})
    inputs = {"x": rows, "slots": np.array([4, 5, 6, 7, 12], np.int32), "ids": np.array([1, 3], np.int32)}
    data = executor.run(inputs, {"T": 5, "N": 2})["data"]
    expected = FORMATS[fmt].decode(encode(FORMATS[fmt], rows.reshape(5, 2, 32)), (5, 2, 32))
    np.testing.assert_array_equal(data[0, 0], expected[:4])
    np.testing.assert_array_equal(data[1, 1, 0], expected[4])
    assert not data[:, 1, 1:].any()


def test_counters_tell_what_happened():
    weight, _ = quantized("f32", 8, 16)

    def build(b):
        b.output("y", b.op("linear", x=b.input("x", "f32", ("T", 16)), weight=b.weight("w", weight[0])))

    _, device = run(build, {"x": np.ones((2, 16), np.float32)}, {"w": weight})
    counters = device.counters()
    assert counters["kernels_run"] == 1
    assert counters["bytes_uploaded"] == 2 * 16 * 4
    assert counters["bytes_downloaded"] == 2 * 8 * 4
    assert counters["host_compute_ns"] > 0


def test_values_in_every_plain_float_format_pass_through():
    for fmt, expected in (("f64", 1 / 3), ("f16", 0.333251953125), ("bf16", 0.333984375)):

        def build(b, fmt=fmt):
            b.output("y", b.op("convert", x=b.input("x", "f64", ("T", 1)), attrs={"format": fmt}))

        made, _ = run(build, {"x": np.array([[1 / 3]])})
        assert made["y"].tolist() == [[expected]]


def test_quantize_and_dequantize_meet_across_a_region_border():
    values = np.random.default_rng(4).standard_normal((2, 64)).astype(np.float32)

    def build(b):
        packed = b.op("quantize", x=b.input("x", "f32", ("T", 64)), attrs={"format": "q8_0"})
        b.output("packed", packed)
        b.output("y", b.op("dequantize", x=packed))

    made, _ = run(build, {"x": values})
    expected = FORMATS["q8_0"].decode(encode(FORMATS["q8_0"], values), (2, 64))
    np.testing.assert_array_equal(made["packed"], expected)
    np.testing.assert_array_equal(made["y"], expected)
