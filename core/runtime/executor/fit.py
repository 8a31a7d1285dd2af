"""How one node fits one device: natively, after decoding a weight at load, or not, with reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from runtime.backend import Manifest, Range, Rule
from runtime.dtypes import FORMATS, Span
from runtime.graph import Node, Value

CONVERSION_TARGETS = ("f32", "bf16", "f16")
"""Formats into which a weight may be decoded at load, best first: every weight format but f64 is exact in f32."""


@dataclass(frozen=True)
class Fit:
    """`kind` "converted": `weights` says into which format each weight is decoded at load, by port."""

    kind: Literal["native", "converted", "none"]
    rule: Rule | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


def fit_node(node: Node, manifest: Manifest, dims: Mapping[str, Span], *, may_convert: bool) -> Fit:
    """Try `node` over the whole ranges of `dims`; a rule that covers them in part only does not fit."""
    outside = _step_limits(node, manifest, dims)
    if outside:
        return Fit("none", reasons=outside)
    facts = node.facts(dims)
    match = manifest.match(node.op.key, facts)
    if match.coverage == "full":
        return Fit("native", match.rule)
    if may_convert:
        for target in CONVERSION_TARGETS:
            ports = _convertible(node, target)
            changed: dict[str, Any] = {f"{port}.format": target for port in ports}
            if not ports:
                continue
            converted = manifest.match(node.op.key, facts | changed)
            if converted.coverage == "full":
                return Fit("converted", converted.rule, dict.fromkeys(ports, target), match.reasons)
    return Fit("none", reasons=match.reasons)


def _convertible(node: Node, target: str) -> list[str]:
    """Ports whose weight can be decoded into `target` (a port that takes any format, or that one)."""
    ports = []
    for name, value in node.inputs.items():
        fmt = value.spec.format
        if value.kind == "weight" and fmt.name != target and fmt.kind in ("float", "block"):
            allowed = next((p.formats for p in node.op.inputs if p.name == name), ())
            if "*" in allowed or target in allowed:
                ports.append(name)
    return ports


def _step_limits(node: Node, manifest: Manifest, dims: Mapping[str, Span]) -> tuple[str, ...]:
    """Reasons why the symbolic dimensions of `node` break the manifest's limits of a step."""
    used = dict.fromkeys(
        d for v in (*node.inputs.values(), *node.outputs) for d in v.spec.shape if isinstance(d, str) and d in dims
    )
    reasons = []
    for name in used:
        limit = manifest.dims.get(name)
        if limit is None:
            continue
        coverage, reason = Range(name, limit.lo, limit.hi, limit.step).test(dims[name])
        if coverage != "full":
            reasons.append(f"a step of {manifest.backend}: {reason}")
    return tuple(reasons)


def converted_value(value: Value, target: str) -> Value:
    """The weight `value` decoded into `target`: a value of its own, as others may use the stored form."""
    from runtime.dtypes import TensorSpec

    spec = TensorSpec(FORMATS[target], value.spec.shape, value.spec.layout)
    return Value(f"{value.name}:{target}", spec, "weight")
