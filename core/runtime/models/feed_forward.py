"""The feed-forward part of a layer: gated and dense, or a mixture of experts."""

from __future__ import annotations

from typing import Any

from runtime.graph import Value
from runtime.models.spec import ExpertSpec
from runtime.models.step import Step


def dense_ffn(step: Step, name: str, x: Value) -> Value:
    """The gated feed-forward network."""
    y: Value = step.op("swiglu_ffn", f"{name}mlp", step.glu_attrs, x=x, **ffn_inputs(step, name))
    return y


def ffn_inputs(step: Step, name: str) -> dict[str, Value | None]:
    """Inputs of the composite swiglu_ffn, without x."""
    return step.weights(name, gate="gate_proj", up="up_proj", down="down_proj")


def experts(step: Step, name: str, x: Value) -> Value:
    """The sum over the chosen experts, plus the shared expert where there is one."""
    moe = step.spec.experts
    assert moe is not None
    y = _routed(step, name, moe, x)
    if not moe.shared_intermediate_size:
        return y
    total: Value = step.op("add", f"{name}experts_sum", a=y, b=_shared(step, f"{name}shared_expert.", x))
    return total


def _routed(step: Step, name: str, moe: ExpertSpec, x: Value) -> Value:
    route = {"top_k": moe.top_k, "score": moe.score, "normalize": moe.normalize}
    ids, weights = step.op("moe_route", f"{name}route", route, logits=step.linear(f"{name}router", x))
    gate = _grouped(step, f"{name}experts.gate_proj", x, ids)
    up = _grouped(step, f"{name}experts.up_proj", x, ids)
    h = step.op("glu", f"{name}experts.glu", step.expert_glu_attrs, gate=gate, up=up)
    return _grouped(step, f"{name}experts.down_proj", h, ids, weights)


def _shared(step: Step, name: str, x: Value) -> Value:
    """An expert for every token, weighted by a sigmoid: a mixture of one."""
    route = {"top_k": 1, "score": "sigmoid", "normalize": False}
    ids, weights = step.op("moe_route", f"{name}route", route, logits=step.linear(f"{name}router", x))
    gate, up = step.linear(f"{name}gate_proj", x), step.linear(f"{name}up_proj", x)
    h = step.op("glu", f"{name}glu", step.expert_glu_attrs, gate=gate, up=up)
    return _grouped(step, f"{name}down_proj", h, ids, weights)


def _grouped(step: Step, name: str, x: Value, ids: Value, weights: Value | None = None) -> Value:
    """Each token through the experts it chose; with `weights`, one input per expert and the weighted sum."""
    attrs: dict[str, Any] = {"per_expert_input": weights is not None}
    y: Value = step.op(
        "moe_linear",
        name,
        attrs,
        x=x,
        weight=step.weight(f"{name}.weight"),
        bias=step.optional(f"{name}.bias"),
        expert_ids=ids,
        expert_weights=weights,
    )
    return y
