"""Every native operation, in every instruction set, against its float64 reference within what its rule declares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from native_device import OneOp, assert_judged

from runtime.dtypes import FORMATS, Span, TensorSpec
from runtime.errors import InvalidArgument
from runtime.graph import GraphBuilder
from runtime.ops import CATALOGUE, Rounding
from runtime_cpu.compiler import OPERATIONS
from runtime_cpu.device import NativeDevice

RNG = np.random.default_rng(11)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def frequencies(count: int) -> np.ndarray:
    return (10000.0 ** (-np.arange(count) / count)).astype(np.float32)


ROWS = normal(5, 96, scale=3)
WIDE = normal(3, 50, scale=4)
EXPERTS = np.argsort(normal(9, 6), axis=1)[:, :3].astype(np.int32)
CASES: list[tuple[str, dict[str, np.ndarray], dict[str, Any]]] = [
    ("rms_norm", {"x": ROWS, "weight": normal(96)}, {"eps": 1e-5}),
    ("rms_norm", {"x": ROWS, "weight": normal(32)}, {"eps": 1e-5, "weight_offset": 1.0}),
    ("layer_norm", {"x": ROWS, "weight": normal(96), "bias": normal(96)}, {"eps": 1e-5}),
    ("layer_norm", {"x": normal(2, 37), "weight": normal(37)}, {"eps": 1e-5}),
    ("rope", {"x": ROWS, "positions": ints(0, 5, 1000, 3, 2), "inv_freq": frequencies(16)}, {"head_dim": 32}),
    ("rope", {"x": ROWS, "positions": ints(0, 5, 9, 3, 2), "inv_freq": frequencies(9)}, {"head_dim": 24}),
    (
        *("rope", {"x": ROWS, "positions": ints(0, 5, 9, 3, 2), "inv_freq": frequencies(10)}),
        {"head_dim": 24, "interleaved": True, "scale": 1.3},
    ),
    *(("glu", {"gate": WIDE, "up": normal(3, 50, scale=5)}, {"kind": k}) for k in CATALOGUE["glu@1"].attrs[0].choices),
    *(("activation", {"x": WIDE}, {"kind": k}) for k in CATALOGUE["activation@1"].attrs[0].choices),
    ("softcap", {"x": WIDE}, {"cap": 3.0}),
    ("softmax", {"x": WIDE}, {"scale": 0.7}),
    ("softmax", {"x": WIDE}, {"log": True}),
    ("add", {"a": ROWS, "b": normal(5, 96)}, {}),
    ("mul", {"a": ROWS, "b": normal(5, 96)}, {"scale": 2.5}),
    ("mul", {"a": ROWS}, {"scale": 0.3}),
    ("gather_rows", {"x": ROWS, "rows": ints(4, 0, 0)}, {}),
    ("concat", {"x0": ROWS, "x1": normal(5, 7)}, {}),
    ("split", {"x": ROWS}, {"sizes": (10, 80, 6)}),
    ("convert", {"x": ROWS}, {"format": "f16"}),
    ("convert", {"x": ROWS}, {"format": "bf16"}),
    ("argmax", {"x": normal(3, 1000)}, {}),
    ("argmax", {"x": np.array([[1, 3, 3], [np.nan, np.nan, 2], [np.nan, np.nan, np.nan]], np.float32)}, {}),
    ("topk", {"x": normal(3, 5000)}, {"k": 40}),
    ("topk", {"x": np.round(normal(3, 5000))}, {"k": 300}),
    ("topk", {"x": normal(2, 9)}, {"k": 9}),
    ("moe_route", {"logits": normal(9, 16), "bias": normal(16)}, {"top_k": 4, "score": "sigmoid", "normalize": True}),
    ("moe_route", {"logits": normal(9, 16)}, {"top_k": 4, "score": "softmax", "normalize": False, "scale": 2.5}),
    ("moe_route", {"logits": normal(9, 16)}, {"top_k": 4, "score": "softmax_selected", "normalize": False}),
]


@pytest.mark.parametrize(("name", "inputs", "attrs"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_an_operation_on_rows_deviates_no_more_than_declared(
    devices: dict[str, NativeDevice], name: str, inputs: dict[str, np.ndarray], attrs: dict[str, Any]
) -> None:
    for device in devices.values():
        assert_judged(OneOp(name, inputs, attrs), device)


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "q8_0", "q4_0", "mxfp4"])
def test_products_and_embeddings_take_any_stored_format(devices: dict[str, NativeDevice], fmt: str) -> None:
    weight, experts = normal(50, 128), normal(6, 40, 64)
    bias = {"bias": ("f32", normal(50))}
    share = {"x": normal(9, 192), "expert_ids": EXPERTS, "expert_weights": normal(9, 3)}
    stacked = {"weight": (fmt, experts), "bias": ("f32", normal(6, 40))}
    for device in devices.values():
        embed = OneOp("embed", {"token_ids": ints(3, 0, 49)}, {"scale": 2.0}, weights={"weight": (fmt, weight)})
        assert np.array_equal(embed.run(device)[0], embed.reference()[0].astype(np.float32))
        assert_judged(OneOp("linear", {"x": normal(7, 128)}, weights={"weight": (fmt, weight), **bias}), device, 8)
        assert_judged(OneOp("moe_linear", {"x": normal(9, 64), "expert_ids": EXPERTS}, weights=stacked), device, 8)
        assert_judged(OneOp("moe_linear", share, {"per_expert_input": True}, weights=stacked), device, 8)


@pytest.mark.parametrize("name", ["q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"])
def test_rows_of_any_block_format_are_decoded_exactly(device: NativeDevice, name: str) -> None:
    fmt = FORMATS[name]
    raw = np.random.default_rng(5).integers(0, 256, fmt.nbytes((7, 512)), dtype=np.uint8)
    blocks = raw.reshape(-1, fmt.block_bytes)
    for place in {"q4_1": (0, 2), "q5_1": (0, 2), "q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,)}.get(name, (0,)):
        blocks[:, place : place + 2] = np.array([0.25], np.float16).view(np.uint8)
    if name in ("q4_k", "q5_k"):
        blocks[:, 2:4] = np.array([-0.5], np.float16).view(np.uint8)
    op = _with_stored("embed", TensorSpec(fmt, (7, 512)), raw.tobytes(), token_ids=ints(6, 0, 3))
    assert np.array_equal(op.run(device)[0], fmt.decode(raw, (7, 512))[[6, 0, 3]])


def _with_stored(name: str, spec: TensorSpec, data: bytes, **inputs: np.ndarray) -> OneOp:
    """An operation whose weight has these bytes; nobody encodes the k-quants here."""
    op = OneOp.__new__(OneOp)
    op.op, op.attrs, op.kv = CATALOGUE[f"{name}@1"], {}, None
    op.arrays, op.stored = inputs, {"weight": (spec, data)}
    builder = GraphBuilder(name, {"T": Span(1, 8)})
    values = {p: builder.input(p, "i32" if a.dtype.kind == "i" else "f32", a.shape) for p, a in inputs.items()}
    made = builder.op(name, weight=builder.weight("weight", spec), **values)
    op.outputs = (made,)
    builder.output("y0", made)
    op.graph = builder.build()
    return op


@pytest.mark.parametrize(("name", "kept"), [("tq2_0", "f16"), ("f8_e4m3", "f16"), ("iq2_s", "f32"), ("iq3_xxs", "f32")])
def test_a_format_without_kernels_is_decoded_without_loss(
    devices: dict[str, NativeDevice], name: str, kept: str
) -> None:
    fmt, rng = FORMATS[name], np.random.default_rng(7)
    raw = rng.integers(0, 112, fmt.nbytes((20, 256)), dtype=np.uint8)  # no NaN or infinity in any scale
    weight = fmt.decode(raw, (20, 256))
    assert np.isfinite(weight).all()
    spec, chosen = TensorSpec(fmt, (20, 256)), np.eye(256, dtype=np.float32)[[0, 3, 100, 255]]
    op = _with_stored("linear", spec, raw.tobytes(), x=chosen)
    for device in devices.values():
        assert np.array_equal(op.run(device)[0], weight.T[[0, 3, 100, 255]])
        assert any(f"{name} weights have no native kernels: decoded to {kept}" in n for n in device.info.notices)
    table = _with_stored("embed", spec, raw.tobytes(), token_ids=ints(6, 0, 3))
    assert np.array_equal(table.run(device)[0], weight[[6, 0, 3]])


@pytest.mark.parametrize("kind", CATALOGUE["activation@1"].attrs[0].choices)
def test_an_activation_keeps_nan(devices: dict[str, NativeDevice], kind: str) -> None:
    x = normal(2, 37)
    x[0, [0, 17, 36]] = np.nan
    for device in devices.values():
        (plain,) = OneOp("activation", {"x": x}, {"kind": kind}).run(device)
        assert np.array_equal(np.isnan(plain), np.isnan(x))


def test_a_gated_unit_keeps_nan_of_both_sides(devices: dict[str, NativeDevice]) -> None:
    gate, up = normal(1, 37), normal(1, 37)
    gate[0, 3] = up[0, 20] = up[0, 36] = np.nan
    for device in devices.values():
        for kind in CATALOGUE["glu@1"].attrs[0].choices:
            (made,) = OneOp("glu", {"gate": gate, "up": up}, {"kind": kind}).run(device)
            assert list(np.flatnonzero(np.isnan(made))) == [3, 20, 36], kind


def test_every_operation_of_the_compiler_is_tested_here() -> None:
    elsewhere = {"attention", "kv_write", "kv_copy_blocks", "kv_export", "kv_import", "penalize", "sample"}
    tested = {c[0] for c in CASES} | {"linear", "moe_linear", "embed"} | elsewhere
    assert {f"{name}@1" for name in tested} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("name", "inputs", "attrs", "message"),
    [
        ("gather_rows", {"x": ROWS, "rows": ints(0, 5)}, {}, r"rows\[1\] = 5 is outside 0..4"),
        ("gather_rows", {"x": ROWS, "rows": ints(-1)}, {}, r"rows\[0\] = -1 is outside 0..4"),
        (
            *("rope", {"x": ROWS, "positions": ints(0, 1, -2, 0, 0), "inv_freq": frequencies(4)}, {"head_dim": 32}),
            r"positions\[2\] = -2; a position is 0 or more",
        ),
    ],
)
def test_bad_indices_are_refused(
    device: NativeDevice, name: str, inputs: dict[str, np.ndarray], attrs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        OneOp(name, inputs, attrs).run(device)


def test_bad_tokens_and_experts_are_refused(device: NativeDevice) -> None:
    with pytest.raises(InvalidArgument, match=r"token_ids\[1\] = 7 is outside 0..6"):
        OneOp("embed", {"token_ids": ints(6, 7)}, weights={"weight": ("f32", normal(7, 32))}).run(device)
    bad = {"x": normal(1, 64), "expert_ids": np.array([[0, 6]], np.int32)}
    with pytest.raises(InvalidArgument, match=r"expert_ids\[1\] = 6 is outside 0..5"):
        OneOp("moe_linear", bad, weights={"weight": ("f32", normal(6, 40, 64))}).run(device)


def test_rounding_to_a_cache_in_8_bits_is_that_of_the_format(device: NativeDevice) -> None:
    kv = normal(2, 2, 64, 2, 64)
    op = OneOp("kv_write", {"k": normal(3, 128), "v": normal(3, 128), "slot_mapping": ints(70, -1, 5)}, kv=("q8_0", kv))
    (wanted,) = op.reference(Rounding({}))
    (got,) = op.run(device)
    assert np.abs(got - wanted).max() < 4 / 127 / 1.9
