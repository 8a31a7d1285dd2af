"""Composites: operations that are defined by a graph of smaller ones, for backends that fuse them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.ops.declare import INDEX, WEIGHTS, Attr, Attrs, Op, Port, Refusal
from runtime.ops.expansion import composite


def _take(attrs: Attrs, *names: str, **renamed: str) -> dict[str, Any]:
    """The attributes called `names`, and others under the name that the part has for them; absent ones stay absent."""
    pairs = [(name, name) for name in names] + [(own, name) for name, own in renamed.items()]
    return {name: attrs[own] for own, name in pairs if own in attrs}


def _expand_rms_norm_linear(b: Any, v: Mapping[str, Any], attrs: Attrs) -> Any:
    h = b.op("rms_norm", x=v["x"], weight=v["norm_weight"], attrs=_take(attrs, "eps", "weight_offset"))
    return b.op("linear", x=h, weight=v["weight"], bias=v.get("bias"))


def _expand_qkv_rope_write(b: Any, v: Mapping[str, Any], attrs: Attrs) -> Any:
    rotary = _take(attrs, "head_dim", "interleaved", scale="rope_scale")
    norm = _take(attrs, "eps", "weight_offset")

    def project(part: str) -> Any:
        y = b.op("linear", name=f"{part}_proj", x=v["x"], weight=v[f"{part}_weight"], bias=v.get(f"{part}_bias"))
        gain = v.get(f"{part}_norm")
        return y if gain is None else b.op("rms_norm", name=f"{part}_norm", x=y, weight=gain, attrs=norm)

    def rotate(x: Any) -> Any:
        return b.op("rope", x=x, positions=v["positions"], inv_freq=v["inv_freq"], attrs=rotary)

    q, k, value = rotate(project("q")), rotate(project("k")), project("v")
    return q, b.op("kv_write", kv=v["kv"], k=k, v=value, slot_mapping=v["slot_mapping"])


def _expand_swiglu_ffn(b: Any, v: Mapping[str, Any], attrs: Attrs) -> Any:
    gate = b.op("linear", name="gate_proj", x=v["x"], weight=v["gate_weight"], bias=v.get("gate_bias"))
    up = b.op("linear", name="up_proj", x=v["x"], weight=v["up_weight"], bias=v.get("up_bias"))
    h = b.op("glu", gate=gate, up=up, attrs=_take(attrs, "kind"))
    return b.op("linear", name="down_proj", x=h, weight=v["down_weight"], bias=v.get("down_bias"))


def _expand_decoder_layer(b: Any, v: Mapping[str, Any], attrs: Attrs) -> Any:
    norm = _take(attrs, "eps", "weight_offset")
    h = b.op("rms_norm", name="attn_norm", x=v["x"], weight=v["attn_norm"], attrs=norm)
    q, kv = b.op(
        "qkv_rope_write",
        x=h,
        **{port.name: v.get(port.name) for port in _QKV_PORTS},
        attrs=_take(attrs, "head_dim", "interleaved", "rope_scale", "eps", "weight_offset"),
    )
    h = b.op(
        "attention",
        q=q,
        kv=kv,
        **{port.name: v[port.name] for port in _BATCH_PORTS},
        attrs=_take(attrs, "num_heads", "num_kv_heads", "head_dim", "scale", "window", "softcap"),
    )
    h = b.op("linear", name="o_proj", x=h, weight=v["o_weight"], bias=v.get("o_bias"))
    x = b.op("add", name="attn_add", a=v["x"], b=h)
    h = b.op("rms_norm", name="ffn_norm", x=x, weight=v["ffn_norm"], attrs=norm)
    h = b.op(
        "swiglu_ffn",
        name="ffn",
        x=h,
        **{port.name: v.get(port.name) for port in _FFN_PORTS},
        attrs=_take(attrs, "kind"),
    )
    return b.op("add", name="ffn_add", a=x, b=h), kv


_X = Port("x", ("T", "K"), doc="activations, one row per token")
_KV_OUT = Port("kv_out", (2, "B", "C", "H", "D"), WEIGHTS, "the cache with the new keys and values", layout="kv")
_QKV_PORTS = (
    Port("q_weight", ("NQ", "K"), WEIGHTS, "queries"),
    Port("k_weight", ("NK", "K"), WEIGHTS, "keys"),
    Port("v_weight", ("NK", "K"), WEIGHTS, "values"),
    Port("q_bias", ("NQ",), doc="bias of the queries", optional=True),
    Port("k_bias", ("NK",), doc="bias of the keys", optional=True),
    Port("v_bias", ("NK",), doc="bias of the values", optional=True),
    Port("q_norm", ("D",), doc="gain of the norm of each query head", optional=True),
    Port("k_norm", ("D",), doc="gain of the norm of each key head", optional=True),
    Port("positions", ("T",), INDEX, "position of each row in its sequence"),
    Port("inv_freq", ("F",), ("f32",), "angle per position of each rotated pair"),
    Port("slot_mapping", ("T",), INDEX, "block_id * C + offset for each row, or -1"),
    Port("kv", (2, "B", "C", "H", "D"), WEIGHTS, "KV cache, overwritten", layout="kv"),
)
_BATCH_PORTS = (
    Port("block_table", ("S", "P"), INDEX, "blocks of each sequence in order"),
    Port("query_start_loc", ("Q",), INDEX, "borders of the sequences' rows in x, Q = S + 1, from 0"),
    Port("seq_lens", ("S",), INDEX, "keys of each sequence, those of this step included"),
)
_FFN_PORTS = (
    Port("gate_weight", ("I", "K"), WEIGHTS, "goes through the nonlinearity"),
    Port("up_weight", ("I", "K"), WEIGHTS, "is multiplied by it"),
    Port("down_weight", ("K", "I"), WEIGHTS, "back to the width of x"),
    Port("gate_bias", ("I",), doc="bias of the gate", optional=True),
    Port("up_bias", ("I",), doc="bias of up", optional=True),
    Port("down_bias", ("K",), doc="bias of the result", optional=True),
)

_EPS = Attr("eps", float, "added to the mean square", required=True, minimum=0.0)
_WEIGHT_OFFSET = Attr("weight_offset", float, "added to the gains of norms; 1 where files store gain - 1", 0.0)
_HEAD_DIM = Attr("head_dim", int, "elements per head", required=True, minimum=1)
_ROPE = (
    Attr("interleaved", bool, "rotate pairs (2i, 2i + 1) instead of (i, i + F)", False),
    Attr("rope_scale", float, "factor of the rotated elements (attention factor of YaRN)", 1.0),
)
_KIND = Attr("kind", str, "nonlinearity of the gate, as in glu", required=True)

_Shapes = dict[str, tuple[int, ...]]


def _llama(name: str, **changed: tuple[str, tuple[int, ...]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Specs of a layer of width 32 with four query heads and two KV heads of eight, for refused inputs."""
    row, batch = ("i32", (2,)), ("i32", (1,))
    qkv: dict[str, tuple[int, ...]] = {
        "q_weight": (32, 32),
        "k_weight": (16, 32),
        "v_weight": (16, 32),
        "inv_freq": (4,),
    }
    ffn: _Shapes = {"gate_weight": (64, 32), "up_weight": (64, 32), "down_weight": (32, 64)}
    parts: dict[str, _Shapes] = {
        "rms_norm_linear": {"norm_weight": (32,), "weight": (8, 32)},
        "qkv_rope_write": qkv,
        "swiglu_ffn": ffn,
        "decoder_layer": qkv | ffn | {"attn_norm": (32,), "o_weight": (32, 32), "ffn_norm": (32,)},
    }
    specs: dict[str, tuple[str, tuple[int, ...]]] = {"x": ("f32", (2, 32))}
    specs |= {part: ("f32", shape) for part, shape in parts[name].items()}
    if "inv_freq" in parts[name]:
        specs |= {"positions": row, "slot_mapping": row, "kv": ("f32", (2, 4, 4, 2, 8))}
    if name == "decoder_layer":
        specs |= {"block_table": ("i32", (1, 2)), "query_start_loc": row, "seq_lens": batch}
    return specs | changed


RMS_NORM_LINEAR = composite(
    name="rms_norm_linear",
    doc="linear of the normalised rows.",
    inputs=(
        _X,
        Port("norm_weight", ("K",), doc="gain of the norm"),
        Port("weight", ("N", "K"), WEIGHTS, "one row per output feature"),
        Port("bias", ("N",), doc="added to every row", optional=True),
    ),
    outputs=(Port("y", ("T", "N"), doc="one row per token"),),
    attrs=(_EPS, _WEIGHT_OFFSET),
    expand=_expand_rms_norm_linear,
    rounding=("activation", "accumulate", "intermediate", "output"),
    laws=("row_independent", "batch_invariant", "scale_invariant"),
    refusals=(
        Refusal("the norm has K gains", _llama("rms_norm_linear", norm_weight=("f32", (16,))), {"eps": 1e-5}),
        Refusal("eps is given", _llama("rms_norm_linear")),
    ),
)

QKV_ROPE_WRITE = composite(
    name="qkv_rope_write",
    doc=(
        "Queries, keys and values of every row: products, then (where there are gains) a norm of each query and key "
        "head, then rotation of queries and keys; keys and values go to their slots of the cache."
    ),
    inputs=(_X, *_QKV_PORTS),
    outputs=(Port("q", ("T", "NQ"), doc="rotated queries"), _KV_OUT),
    attrs=(
        _HEAD_DIM,
        *_ROPE,
        Attr("eps", float, "added to the mean square; needed where there are norms", minimum=0.0),
        _WEIGHT_OFFSET,
    ),
    expand=_expand_qkv_rope_write,
    rounding=("activation", "accumulate", "kv", "intermediate", "output"),
    laws=("row_independent", "batch_invariant"),
    inplace={"kv_out": "kv"},
    refusals=(
        Refusal(
            "keys fill the heads of the cache",
            _llama("qkv_rope_write", kv=("f32", (2, 4, 4, 4, 8))),
            {"head_dim": 8},
        ),
        Refusal(
            "norms have an eps",
            _llama("qkv_rope_write", q_norm=("f32", (8,)), k_norm=("f32", (8,))),
            {"head_dim": 8},
        ),
        Refusal("head_dim is given", _llama("qkv_rope_write")),
    ),
)

SWIGLU_FFN = composite(
    name="swiglu_ffn",
    doc="The gated feed-forward network: down(glu(gate(x), up(x))). (Shazeer 2020.)",
    inputs=(_X, *_FFN_PORTS),
    outputs=(Port("y", ("T", "K"), doc="one row per token"),),
    attrs=(_KIND,),
    expand=_expand_swiglu_ffn,
    rounding=("activation", "accumulate", "intermediate", "output"),
    laws=("row_independent", "batch_invariant"),
    refusals=(
        Refusal("gate and up are equally wide", _llama("swiglu_ffn", up_weight=("f32", (48, 32))), {"kind": "silu"}),
        Refusal("kind is one of glu's", _llama("swiglu_ffn"), {"kind": "tanhshrink"}),
    ),
)

_LAYER_ATTRS = {"eps": 1e-5, "head_dim": 8, "num_heads": 4, "num_kv_heads": 2, "scale": 0.35, "kind": "silu"}

DECODER_LAYER = composite(
    name="decoder_layer",
    doc=(
        "A whole layer of a pre-norm decoder in the manner of llama: x + attention(norm(x)), then the same with the "
        "gated feed-forward network."
    ),
    inputs=(
        _X,
        Port("attn_norm", ("K",), doc="gain of the norm before attention"),
        *_QKV_PORTS,
        Port("o_weight", ("K", "NQ"), WEIGHTS, "output of attention"),
        Port("o_bias", ("K",), doc="bias of the output of attention", optional=True),
        Port("ffn_norm", ("K",), doc="gain of the norm before the feed-forward network"),
        *_FFN_PORTS,
        *_BATCH_PORTS,
    ),
    outputs=(Port("y", ("T", "K"), doc="one row per token"), _KV_OUT),
    attrs=(
        _EPS,
        _WEIGHT_OFFSET,
        _HEAD_DIM,
        Attr("num_heads", int, "query heads", required=True, minimum=1),
        Attr("num_kv_heads", int, "KV heads; divides num_heads", required=True, minimum=1),
        *_ROPE,
        Attr("scale", float, "factor of q k, usually 1 / sqrt(head_dim)", required=True),
        Attr("window", int, "keys that a query sees, itself included; 0: all", 0, minimum=0),
        Attr("softcap", float, "bound on scores by tanh; 0: none", 0.0),
        _KIND,
    ),
    expand=_expand_decoder_layer,
    rounding=("activation", "accumulate", "kv", "probability", "intermediate", "output"),
    laws=("physical_blocks_may_be_permuted", "free_slots_leave_no_trace", "chunked_equals_one_shot"),
    inplace={"kv_out": "kv"},
    refusals=(
        Refusal("the norm has K gains", _llama("decoder_layer", ffn_norm=("f32", (16,))), _LAYER_ATTRS),
        Refusal("the cache has num_kv_heads heads", _llama("decoder_layer"), _LAYER_ATTRS | {"num_kv_heads": 4}),
        Refusal("head_dim divides q", _llama("decoder_layer"), _LAYER_ATTRS | {"head_dim": 12}),
    ),
)

OPS: tuple[Op, ...] = (RMS_NORM_LINEAR, QKV_ROPE_WRITE, SWIGLU_FFN, DECODER_LAYER)
