"""Spaces of fused operations, up to a whole decoder layer."""

from __future__ import annotations

from math import sqrt
from typing import Any

from runtime.backend import Manifest
from runtime.dtypes import FORMATS
from runtime.ops import CATALOGUE
from runtime_conformance.case import Case, Tensor
from runtime_conformance.cases.attention import block_sizes, kv_formats
from runtime_conformance.cases.batches import make_batch
from runtime_conformance.cases.rows import _float32
from runtime_conformance.cases.space import FLOAT_FORMATS, Params, Space

_WEIGHTS = ("f32", "q8_0", "q4_k", "q6_k", "q4_0", "f16", "bf16")


def _fused(op_key: str) -> Any:
    """Builds a case of any composite by the names of its ports."""

    def build(p: Params) -> Case | None:
        k, d = p["K"], p.get("head_dim", 64)
        heads, kv_heads = p.get("heads", (4, 2))
        sizes = {
            "K": k,
            "N": p.get("N", 160),
            "I": p.get("I", 512),
            "NQ": heads * d,
            "NK": kv_heads * d,
            "D": d,
            "F": d // 2,
        }
        widths = {port.shape[-1] for port in CATALOGUE[op_key].inputs if "*" in port.formats and port.layout == "plain"}
        if any(sizes[str(w)] % FORMATS[p["weight.format"]].group_size for w in widths):
            return None
        batch = make_batch(p.get("batch", "mixed"), p.get("C", 16))
        sizes["T"] = batch.num_tokens if "batch" in p else p["T"]
        inputs = {}
        for port in CATALOGUE[op_key].inputs:
            if port.optional and not (p["bias"] if port.name.endswith("bias") else p.get("qk_norm", False)):
                continue
            tensor = _batch_tensor(port.name, p, batch, heads, kv_heads, d)
            inputs[port.name] = tensor or _plain_tensor(port, p, sizes)
        return Case(op_key, inputs, _attrs(op_key, p, heads, kv_heads, d), p["kind"], note=str(p.get("model", "")))

    return build


def _batch_tensor(name: str, p: Params, batch: Any, heads: int, kv_heads: int, d: int) -> Tensor | None:
    if name == "kv":
        shape = (2, batch.num_blocks, batch.block_size, kv_heads, d)
        return Tensor(p.get("kv.format", "f16"), shape, "state", ("normal",), "kv")
    if name == "positions":
        return Tensor("i32", (batch.num_tokens,), data=("values", *batch.positions))
    if name == "slot_mapping":
        return Tensor("i32", (batch.num_tokens,), data=("values", *batch.slot_mapping))
    if name == "inv_freq":
        frequencies = (_float32(10000.0 ** (-2 * i / d)) for i in range(d // 2))
        return Tensor("f32", (d // 2,), data=("values", *frequencies))
    result = batch.tensors().get(name)
    assert result is None or isinstance(result, Tensor)
    return result


def _plain_tensor(port: Any, p: Params, sizes: dict[str, int]) -> Tensor:
    shape = tuple(sizes[s] for s in port.shape)
    if "*" in port.formats:
        return Tensor(p["weight.format"], shape, "weight", ("normal", 0.05))
    if len(shape) == 1:
        return Tensor("f32", shape, data=("normal", 0.25, 0.0 if port.name.endswith("bias") else 1.0))
    return Tensor(p["x.format"], shape, data=(p["kind"],))


def _attrs(op_key: str, p: Params, heads: int, kv_heads: int, d: int) -> dict[str, Any]:
    known: dict[str, Any] = {
        "eps": 1e-5,
        "weight_offset": 0.0,
        "head_dim": d,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "interleaved": p.get("interleaved", False),
        "scale": 1 / sqrt(d),
        "window": p.get("window", 0),
        "kind": p.get("function", "silu"),
    }
    return {a.name: known[a.name] for a in CATALOGUE[op_key].attrs if a.name in known}


def composite_spaces(manifest: Manifest) -> tuple[Space, ...]:
    """Over the cache layouts of `manifest`."""
    common: dict[str, tuple[Any, ...]] = {
        "K": (256, 512),
        "weight.format": _WEIGHTS,
        "x.format": FLOAT_FORMATS[:1],
        "bias": (False, True),
        "kind": ("normal", "outlier"),
    }
    cache = {
        "batch": ("mixed", "decode", "borders", "chunk"),
        "heads": ((4, 2), (4, 4), (8, 1)),
        "head_dim": (64, 32),
        "C": block_sizes(manifest),
        "kv.format": kv_formats(manifest),
        "interleaved": (False, True),
        "qk_norm": (False, True),
    }
    return (
        Space("rms_norm_linear@1", common | {"T": (1, 5, 33), "N": (64, 33, 160)}, _fused("rms_norm_linear@1")),
        Space("qkv_rope_write@1", common | cache, _fused("qkv_rope_write@1")),
        Space(
            "swiglu_ffn@1",
            common | {"T": (1, 5, 17), "I": (512, 256), "function": ("silu", "gelu_tanh")},
            _fused("swiglu_ffn@1"),
        ),
        Space(
            "decoder_layer@1",
            common | cache | {"I": (512,), "window": (0, 8), "function": ("silu", "gelu_tanh")},
            _fused("decoder_layer@1"),
        ),
    )
