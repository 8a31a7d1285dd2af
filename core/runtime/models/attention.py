"""The attention part of a layer."""

from __future__ import annotations

from typing import Any

from runtime.graph import Value
from runtime.models.spec import LayerSpec
from runtime.models.step import Step


def attention(step: Step, name: str, layer: LayerSpec, x: Value) -> Value:
    """Rotated, cached, grouped attention with the projections before it."""
    if layer.rope is None:
        q, kv = _qkv_without_rope(step, name, x)
    else:
        inputs = qkv_inputs(step, name, layer.rope)
        q, kv = step.op("qkv_rope_write", f"{name}qkv", qkv_attrs(step, layer.rope), x=x, **inputs)
    sinks = step.optional(f"{name}sinks.weight")
    attrs = attention_attrs(step, layer)
    y: Value = step.op("attention", f"{name}attention", attrs, q=q, kv=kv, sinks=sinks, **step.batch)
    return y


def attention_attrs(step: Step, layer: LayerSpec) -> dict[str, Any]:
    """Attributes of the operation attention."""
    return {
        "num_heads": step.spec.num_heads,
        "num_kv_heads": step.spec.num_kv_heads,
        "head_dim": step.spec.head_dim,
        "scale": step.spec.attention_scale,
        "window": layer.window,
        "softcap": step.spec.attention_softcap,
    }


def qkv_attrs(step: Step, rope: str) -> dict[str, Any]:
    """Attributes of the composite qkv_rope_write, with the rotary embedding `rope`."""
    return {
        **step.norm_attrs,
        "head_dim": step.spec.head_dim,
        "interleaved": step.spec.rope_interleaved,
        "rope_scale": step.rope_scale(rope),
    }


def qkv_inputs(step: Step, name: str, rope: str) -> dict[str, Value | None]:
    """Inputs of the composite qkv_rope_write, without x."""
    return {
        **step.weights(name, q="q_proj", k="k_proj", v="v_proj"),
        "q_norm": step.optional(f"{name}q_norm.weight"),
        "k_norm": step.optional(f"{name}k_norm.weight"),
        "positions": step.positions,
        "inv_freq": step.inv_freq(rope),
        "slot_mapping": step.slot_mapping,
        "kv": step.builder.state(f"{name}kv", step.kv_spec),
    }


def _qkv_without_rope(step: Step, name: str, x: Value) -> tuple[Value, Value]:
    """Queries, and the cache with this step's keys and values in it."""
    q, k, v = (step.linear(f"{name}{part}", x) for part in ("q_proj", "k_proj", "v_proj"))
    if step.spec.qk_norm:
        q, k = step.norm(f"{name}q_norm", q), step.norm(f"{name}k_norm", k)
    kv = step.builder.state(f"{name}kv", step.kv_spec)
    return q, step.op("kv_write", f"{name}kv_write", kv=kv, k=k, v=v, slot_mapping=step.slot_mapping)
