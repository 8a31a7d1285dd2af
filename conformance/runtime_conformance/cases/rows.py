"""Spaces of operations on rows: rope, movement, softmax, topk, argmax, quantisation."""

from __future__ import annotations

from runtime.dtypes import FORMATS, can_encode
from runtime_conformance.case import Case, Tensor
from runtime_conformance.cases.dense import WEIGHT_FORMATS
from runtime_conformance.cases.space import FLOAT_FORMATS, X_DATA, Params, Space, make_case

_ROWS = (1, 5, 2, 33)


def _rope(p: Params) -> Case | None:
    d = p["head_dim"]
    rotated = p["F"] if "F" in p else int(d * p["partial"]) // 2
    if not 1 <= rotated <= d // 2:
        return None
    width = p["N"] if "N" in p and p["N"] % d == 0 else d * p["heads"]
    params = dict(p) | {"N": width, "F": rotated}
    t = p["T"]
    positions = {
        "ordered": range(t),
        "late": range(4000, 4000 + t),
        "mixed": [(i * 37) % 2048 for i in range(t)],
        "zero": [0] * t,
    }[p["positions"]]
    frequencies = [p["theta"] ** (-2 * i / (2 * rotated)) for i in range(rotated)]
    data = {
        "x": X_DATA[p["kind"]],
        "positions": ("values", *positions),
        # written as float32, so that the angle has the same meaning everywhere
        "inv_freq": ("values", *(_float32(f) for f in frequencies)),
    }
    return make_case("rope@1", params, data)


def _float32(x: float) -> float:
    import struct

    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def _gather(p: Params) -> Case:
    return make_case("gather_rows@1", p, {"rows": ("indices", p["T"])}, "exact")


def _parts(p: Params) -> tuple[int, ...]:
    return {"two": (64, 64), "odd": (33, 5, 64), "qkv": (256, 64, 64), "one": (48,)}[p["parts"]]


def _concat(p: Params) -> Case:
    inputs = {f"x{i}": Tensor(p["format"], (p["T"], width)) for i, width in enumerate(_parts(p))}
    return Case("concat@1", inputs, {}, "exact")


def _split(p: Params) -> Case:
    sizes = _parts(p)
    return Case("split@1", {"x": Tensor(p["format"], (p["T"], sum(sizes)))}, {"sizes": sizes}, "exact")


def _softmax(p: Params) -> Case:
    kind = p["kind"]
    filler = {
        "normal": ("normal", 3.0),
        "peaked": ("outlier", 3.0),
        "wide": ("wide", 2.0, 3),
    }[kind]
    return make_case("softmax@1", p, {"x": filler}, kind)


def _topk(p: Params) -> Case | None:
    if p["k"] > p["N"]:
        return None
    filler = {"steps": ("steps",), "ties": ("ties",), "nonfinite": ("nonfinite",), "normal": ("normal",)}[p["kind"]]
    return make_case("topk@1", p, {"x": filler}, p["kind"])


def _argmax(p: Params) -> Case:
    filler = {"steps": ("steps",), "ties": ("ties",), "nonfinite": ("nonfinite",), "normal": ("normal",)}[p["kind"]]
    return make_case("argmax@1", p, {"x": filler}, p["kind"])


def _quantize(p: Params) -> Case | None:
    if p["K"] % FORMATS[p["format"]].group_size:
        return None
    return make_case("quantize@1", p, {"x": X_DATA[p["kind"]]})


def _dequantize(p: Params) -> Case | None:
    if p["K"] % FORMATS[p["x.format"]].group_size:
        return None
    return make_case("dequantize@1", p, {"x": ("normal", 0.5)}, "normal")


SPACES = (
    Space(
        "rope@1",
        {
            "T": (*_ROWS, 9),
            "head_dim": (64, 128, 80, 96, 16),
            "heads": (1, 4, 9),
            "partial": (1.0, 0.5, 0.25),
            "positions": ("ordered", "late", "mixed", "zero"),
            "theta": (10000.0, 500000.0),
            "interleaved": (False, True),
            "scale": (1.0, 1.19),
            "x.format": FLOAT_FORMATS,
            "kind": ("normal", "outlier", "wide"),
        },
        _rope,
        models=(
            {
                "T": 6,
                "head_dim": 64,
                "heads": 32,
                "partial": 1.0,
                "positions": "late",
                "theta": 500000.0,
                "kind": "outlier",
                "model": "llama-3.2-1b q",
            },
            {
                "T": 6,
                "head_dim": 256,
                "heads": 4,
                "partial": 1.0,
                "positions": "mixed",
                "theta": 10000.0,
                "kind": "normal",
                "model": "gemma-2 q",
            },
        ),
    ),
    Space("gather_rows@1", {"T": (5, 1, 33), "K": (64, 33, 256), "R": (1, 3, 40), "x.format": FLOAT_FORMATS}, _gather),
    Space("concat@1", {"T": _ROWS, "parts": ("two", "odd", "qkv", "one"), "format": FLOAT_FORMATS}, _concat),
    Space("split@1", {"T": _ROWS, "parts": ("qkv", "two", "odd", "one"), "format": FLOAT_FORMATS}, _split),
    Space(
        "softmax@1",
        {
            "T": _ROWS,
            "K": (64, 33, 1000, 256),
            "log": (False, True),
            "scale": (1.0, 0.7),
            "x.format": FLOAT_FORMATS,
            "kind": ("normal", "peaked", "wide"),
        },
        _softmax,
    ),
    Space(
        "topk@1",
        {
            "T": _ROWS,
            "N": (64, 1000, 33, 2050),
            "k": (1, 8, 40),
            "x.format": FLOAT_FORMATS,
            "kind": ("steps", "ties", "normal", "nonfinite"),
        },
        _topk,
        models=({"T": 2, "N": 32064, "k": 40, "kind": "normal", "model": "logits of phi-3"},),
    ),
    Space(
        "argmax@1",
        {
            "T": _ROWS,
            "N": (64, 1000, 33, 2050),
            "x.format": FLOAT_FORMATS,
            "kind": ("steps", "ties", "normal", "nonfinite"),
        },
        _argmax,
        models=({"T": 2, "N": 32064, "kind": "normal", "model": "logits of phi-3"},),
    ),
    Space(
        "quantize@1",
        {
            "T": _ROWS,
            "K": (256, 64, 512),
            "format": tuple(f for f in WEIGHT_FORMATS if FORMATS[f].is_quantized and can_encode(FORMATS[f])),
            "kind": ("normal", "outlier", "wide"),
        },
        _quantize,
    ),
    Space(
        "dequantize@1",
        {"T": _ROWS, "K": (256, 512, 64), "x.format": WEIGHT_FORMATS, "format": ("f32", "f16", "bf16")},
        _dequantize,
    ),
)
