"""One layer of a model: as one composite where it is a plain pre-norm layer, else part by part."""

from __future__ import annotations

from runtime.graph import Value
from runtime.models.attention import attention, attention_attrs, qkv_attrs, qkv_inputs
from runtime.models.feed_forward import dense_ffn, experts, ffn_inputs
from runtime.models.spec import LayerSpec, ModelSpec
from runtime.models.step import Step


def decoder_layer(step: Step, index: int, x: Value) -> Value:
    """Layer `index`: x + attention(norm(x)), then the same with the feed-forward part."""
    name, layer = f"layers.{index}.", step.spec.layers[index]
    if is_plain(step.spec, layer):
        return _whole(step, name, layer, x)
    y = attention(step, name, layer, step.norm(f"{name}attn_norm", x))
    return _after_attention(step, name, layer, x, y)


def last_layer(step: Step, x: Value) -> Value:
    """The last layer for the rows whose logits are wanted: of the others, only keys and values have a use."""
    index = step.spec.num_layers - 1
    name, layer = f"layers.{index}.", step.spec.layers[index]
    y = attention(step, name, layer, step.norm(f"{name}attn_norm", x))
    x, y = (
        step.op("gather_rows", f"{name}wanted_{what}", x=rows, rows=step.logits_rows)
        for what, rows in (("rows", x), ("attention", y))
    )
    return _after_attention(step, name, layer, x, y)


def _after_attention(step: Step, name: str, layer: LayerSpec, x: Value, y: Value) -> Value:
    """The rest of a layer, from its input x and what attention gave, y."""
    x = _residual(step, f"{name}attn", x, step.linear(f"{name}o_proj", y))
    h = step.norm(f"{name}ffn_norm", x)
    y = experts(step, name, h) if layer.sparse else dense_ffn(step, name, h)
    return _residual(step, f"{name}ffn", x, y)


def is_plain(spec: ModelSpec, layer: LayerSpec) -> bool:
    """Whether the composite decoder_layer says exactly what this layer does."""
    special = spec.post_norms or spec.sinks or spec.residual_multiplier != 1.0 or spec.activation == "swiglu_oai"
    return layer.rope is not None and not layer.sparse and not special


def _whole(step: Step, name: str, layer: LayerSpec, x: Value) -> Value:
    assert layer.rope is not None
    y, _ = step.op(
        "decoder_layer",
        f"{name}decoder_layer",
        {**qkv_attrs(step, layer.rope), **attention_attrs(step, layer), **step.glu_attrs},
        x=x,
        attn_norm=step.weight(f"{name}attn_norm.weight"),
        ffn_norm=step.weight(f"{name}ffn_norm.weight"),
        o_weight=step.weight(f"{name}o_proj.weight"),
        o_bias=step.optional(f"{name}o_proj.bias"),
        **qkv_inputs(step, name, layer.rope),
        **ffn_inputs(step, name),
        **step.batch,
    )
    assert isinstance(y, Value)
    return y


def _residual(step: Step, name: str, x: Value, y: Value) -> Value:
    """x plus the branch y, after the branch's own norm and multiplier where the model has them."""
    if step.spec.post_norms:
        y = step.norm(f"{name}_post_norm", y)
    if step.spec.residual_multiplier != 1.0:
        y = step.op("mul", f"{name}_scaled", {"scale": step.spec.residual_multiplier}, a=y)
    z: Value = step.op("add", f"{name}_residual", a=x, b=y)
    return z
