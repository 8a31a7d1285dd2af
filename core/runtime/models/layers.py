"""One layer of a model: attention and feed-forward around a residual stream."""

from __future__ import annotations

from typing import Any

from runtime.graph import Value
from runtime.models.moe import experts
from runtime.models.spec import LayerSpec
from runtime.models.step import Step


def decoder_layer(step: Step, index: int, x: Value) -> Value:
    """Layer `index`: x + attention(norm(x)), then the same with the feed-forward part."""
    name, layer = f"layers.{index}", step.spec.layers[index]
    y = attention(step, f"{name}.", layer, step.norm(f"{name}.attn_norm", x))
    x = _residual(step, f"{name}.attn", x, y)
    h = step.norm(f"{name}.ffn_norm", x)
    y = experts(step, f"{name}.", h) if layer.sparse else dense_ffn(step, f"{name}.", h)
    return _residual(step, f"{name}.ffn", x, y)


def attention(step: Step, name: str, layer: LayerSpec, x: Value) -> Value:
    """Rotated, cached, grouped attention with its projections."""
    spec = step.spec
    q, kv = _qkv(step, name, layer, x)
    attrs: dict[str, Any] = {
        "num_heads": spec.num_heads,
        "num_kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "scale": spec.attention_scale,
        "window": layer.window,
        "softcap": spec.attention_softcap,
    }
    y = step.op(
        "attention",
        f"{name}attention",
        attrs,
        q=q,
        kv=kv,
        block_table=step.block_table,
        query_start_loc=step.query_start_loc,
        seq_lens=step.seq_lens,
        sinks=step.bias(f"{name}sinks.weight"),
    )
    return step.linear(f"{name}o_proj", y)


def dense_ffn(step: Step, name: str, x: Value) -> Value:
    """The gated feed-forward part."""
    gate, up = step.linear(f"{name}gate_proj", x), step.linear(f"{name}up_proj", x)
    return step.linear(f"{name}down_proj", step.op("glu", f"{name}glu", step.glu_attrs, gate=gate, up=up))


def _qkv(step: Step, name: str, layer: LayerSpec, x: Value) -> tuple[Value, Value]:
    """Queries, and the cache with this step's keys and values in it."""
    q, k, v = (step.linear(f"{name}{part}", x) for part in ("q_proj", "k_proj", "v_proj"))
    if step.spec.qk_norm:
        q, k = step.norm(f"{name}q_norm", q), step.norm(f"{name}k_norm", k)
    if layer.rope is not None:
        q, k = _rotate(step, f"{name}q_rope", layer.rope, q), _rotate(step, f"{name}k_rope", layer.rope, k)
    kv = step.builder.state(f"{name}kv", step.kv_spec)
    return q, step.op("kv_write", f"{name}kv_write", kv=kv, k=k, v=v, slot_mapping=step.slot_mapping)


def _rotate(step: Step, name: str, key: str, x: Value) -> Value:
    attrs = {
        "head_dim": step.spec.head_dim,
        "interleaved": step.spec.rope_interleaved,
        "scale": step.rope_scale(key),
    }
    y: Value = step.op("rope", name, attrs, x=x, positions=step.positions, inv_freq=step.inv_freq(key))
    return y


def _residual(step: Step, name: str, x: Value, y: Value) -> Value:
    """x plus the branch y, after the branch's own norm and multiplier where the model has them."""
    if step.spec.post_norms:
        y = step.norm(f"{name}_post_norm", y)
    if step.spec.residual_multiplier != 1.0:
        y = step.op("mul", f"{name}_scaled", {"scale": step.spec.residual_multiplier}, a=y)
    z: Value = step.op("add", f"{name}_residual", a=x, b=y)
    return z
