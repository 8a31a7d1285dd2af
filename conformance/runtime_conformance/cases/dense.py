"""Spaces of what dense decoders compute besides attention: linear, embed, norms, activations, elementwise."""

from __future__ import annotations

from typing import Any

from runtime.dtypes import FORMATS, can_encode
from runtime_conformance.case import Case
from runtime_conformance.cases.space import FLOAT_FORMATS, PLAIN_KINDS, Params, Space, make_case

WEIGHT_FORMATS = (
    *("f32", "q8_0", "q4_k", "f16", "q4_0", "q6_k", "bf16", "q5_0", "q5_k", "q4_1", "q5_1", "q2_k", "q3_k", "iq4_nl"),
    *("iq4_xs", "mxfp4", "iq3_s", "iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_s", "iq1_m", "tq1_0", "tq2_0"),
    *("nvfp4", "f8_e4m3", "f8_e4m3_g128", "f8_e5m2"),
)
"""In the order of how often they are met."""
LINEAR_KINDS = ("normal", "outlier", "exact", "cancel", "exact_sparse", "wide", "nonfinite", "denormal")


def weight_data(fmt: str, kind: str) -> tuple[Any, ...]:
    """Filler of a weight that goes with activations of `kind`."""
    if kind in ("exact", "exact_sparse"):
        # block scales are the largest element divided by a constant: -8 makes it a power of two in q4_0
        return ("integers", -2, 2, 0.25) if fmt in ("f8_e4m3", "f8_e5m2") else ("integers", -8, 7, 0.125)
    if kind == "cancel":
        return ("paired", 0.05)
    return ("normal", 0.05)


def _linear(p: Params) -> Case | None:
    fmt, kind = p.get("weight.format", "f32"), p["kind"]
    if p["K"] % FORMATS[fmt].group_size:
        return None
    if kind == "exact" and FORMATS[fmt].is_quantized and can_encode(FORMATS[fmt]) and fmt != "q4_0":
        return None  # their encoders' scales are no powers of two
    if kind == "exact_sparse" and FORMATS[fmt].is_quantized:
        return None
    data = {"weight": weight_data(fmt, kind)}
    if kind.startswith("exact"):
        data["bias"] = ("integers", -4, 4)
    if kind == "denormal" and p.get("x.format") == "f16":
        return None  # half precision holds nothing that small
    return make_case("linear@1", p, data)


def _embed(p: Params) -> Case | None:
    fmt = p.get("weight.format", "f32")
    if p["K"] % FORMATS[fmt].group_size:
        return None
    data = {"token_ids": ("indices", p["V"]), "weight": ("normal", 0.5)}
    return make_case("embed@1", p, data, "exact" if p.get("scale", 1.0) == 1.0 else "normal")


def _rms_norm(p: Params) -> Case | None:
    params = dict(p) | {"K": p["K"] if "D" in p and p["K"] % p["D"] == 0 else p["D"] * p.get("runs", 1)}
    if params["kind"] == "denormal" and p.get("x.format") == "f16":
        return None
    return make_case("rms_norm@1", params)


def _layer_norm(p: Params) -> Case | None:
    if p["kind"] == "denormal" and p.get("x.format") == "f16":
        return None
    return make_case("layer_norm@1", p)


def _pointwise(op_key: str) -> Any:
    def build(p: Params) -> Case | None:
        if p["kind"] == "denormal" and "f16" in (p.get("x.format"), p.get("a.format"), p.get("gate.format")):
            return None
        return make_case(op_key, p)

    return build


_ROWS = (1, 5, 2, 33)
_WIDTHS = (64, 256, 80, 33)
_POINTWISE = {"T": _ROWS, "K": _WIDTHS, "kind": PLAIN_KINDS}

LINEAR = Space(
    "linear@1",
    {
        "T": (1, 5, 2, 33, 17),
        "K": (256, 512, 64, 32, 96, 1024),
        "N": (64, 33, 160, 1, 256),
        "weight.format": WEIGHT_FORMATS,
        "x.format": FLOAT_FORMATS,
        "has.bias": (False, True),
        "kind": LINEAR_KINDS,
    },
    _linear,
    models=(
        {"T": 1, "K": 2048, "N": 512, "weight.format": "q4_k", "kind": "outlier", "model": "llama-3.2-1b k_proj"},
        {"T": 8, "K": 2048, "N": 512, "weight.format": "q6_k", "kind": "outlier", "model": "llama-3.2-1b v_proj"},
        {
            "T": 3,
            "K": 896,
            "N": 128,
            "weight.format": "q8_0",
            "has.bias": True,
            "kind": "normal",
            "model": "qwen2.5-0.5b k_proj",
        },
        {"T": 1, "K": 4864, "N": 896, "weight.format": "q4_0", "kind": "outlier", "model": "qwen2.5-0.5b down_proj"},
        {"T": 2, "K": 1152, "N": 256, "weight.format": "f16", "kind": "wide", "model": "gemma-3-1b k_proj"},
    ),
)
EMBED = Space(
    "embed@1",
    {"T": _ROWS, "V": (32, 97, 320), "K": (256, 64, 512), "weight.format": WEIGHT_FORMATS, "scale": (1.0, 8.0, 33.94)},
    _embed,
    models=({"T": 7, "V": 1000, "K": 2048, "weight.format": "q6_k", "model": "llama-3.2-1b embed_tokens, 1000 rows"},),
)
RMS_NORM = Space(
    "rms_norm@1",
    {
        "T": _ROWS,
        "D": (256, 64, 80, 33, 2048),
        "runs": (1, 4),
        "K": (256,),
        "x.format": FLOAT_FORMATS,
        "eps": (1e-5, 1e-6),
        "weight_offset": (0.0, 1.0),
        "kind": ("normal", "outlier", "wide", "nonfinite", "denormal"),
    },
    _rms_norm,
    models=(
        {"T": 4, "K": 3584, "D": 3584, "eps": 1e-6, "weight_offset": 1.0, "kind": "outlier", "model": "gemma-2-9b"},
    ),
)
LAYER_NORM = Space(
    "layer_norm@1",
    {
        "T": _ROWS,
        "K": (256, 64, 80, 33, 768),
        "has.bias": (True, False),
        "x.format": FLOAT_FORMATS,
        "eps": (1e-5, 1e-12),
        "kind": ("normal", "outlier", "wide", "nonfinite"),
    },
    _layer_norm,
)
ACTIVATION = Space(
    "activation@1",
    _POINTWISE
    | {
        "x.format": FLOAT_FORMATS,
        # the case's own kind is called kind as well: the attribute of the operation comes as "function"
        "function": ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "quick_gelu"),
    },
    lambda p: _with_function("activation@1", p),
)
GLU = Space(
    "glu@1",
    _POINTWISE | {"format": FLOAT_FORMATS, "function": ("silu", "gelu", "gelu_tanh", "swiglu_oai")},
    lambda p: _with_function("glu@1", p),
)
ADD = Space("add@1", _POINTWISE | {"a.format": ("f32", "f16", "bf16")}, _pointwise("add@1"))
MUL = Space(
    "mul@1",
    _POINTWISE | {"a.format": ("f32", "f16", "bf16"), "has.b": (True, False), "scale": (1.0, 0.5, 1.37)},
    _pointwise("mul@1"),
)
SOFTCAP = Space("softcap@1", _POINTWISE | {"x.format": FLOAT_FORMATS, "cap": (30.0, 50.0, 2.0)}, lambda p: _softcap(p))
CONVERT = Space(
    "convert@1",
    _POINTWISE | {"x.format": ("f32", "f16", "bf16"), "format": ("f16", "f32", "bf16")},
    _pointwise("convert@1"),
)


def _softcap(p: Params) -> Case | None:
    """Values as large as the cap: smaller ones pass unchanged."""
    kind = p["kind"]
    if kind == "exact" or (kind == "denormal" and p["x.format"] == "f16"):
        return None
    return make_case("softcap@1", p, {"x": (kind, p["cap"])})


def _with_function(op_key: str, p: Params) -> Case | None:
    kind = p["kind"]
    fmt = p.get("format", p.get("x.format", "f32"))
    if kind == "denormal" and fmt == "f16":
        return None
    if kind == "exact" and p["function"] not in ("relu", "relu2"):
        kind = "normal"
    formats = {"gate.format": fmt, "up.format": fmt} if op_key == "glu@1" else {}
    return make_case(op_key, {**p, **formats, "kind": p["function"]}, _same(op_key, kind), kind).but(kind=kind)


def _same(op_key: str, kind: str) -> dict[str, tuple[Any, ...]]:
    from runtime_conformance.cases.space import X_DATA

    filler = X_DATA[kind]
    return {"gate": filler, "up": ("normal",)} if op_key == "glu@1" else {"x": filler}


SPACES = (LINEAR, EMBED, RMS_NORM, LAYER_NORM, ACTIVATION, GLU, ADD, MUL, SOFTCAP, CONVERT)
