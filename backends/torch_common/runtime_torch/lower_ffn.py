"""The gated feed-forward network: from nodes to calls."""

from __future__ import annotations

import torch

from runtime_torch.calls import Call, Site, planes_of
from runtime_torch.lower_rows import KINDS, glu_call
from runtime_torch.products import linear_calls
from runtime_torch.products_few import FEW_TOKENS, Product, gate_up_calls


def lower_swiglu_ffn(site: Site) -> list[Call]:
    """Two products, the gate, one product."""
    x, y = site.tensor("x"), site.output()
    gate = site.scratch((x.shape[0], site.shape("gate_weight")[0]))
    return [*_gate_calls(site, x, gate), *linear_calls(site, "down_weight", gate, _bias(site, "down"), y)]


def _gate_calls(site: Site, x: torch.Tensor, gate: torch.Tensor) -> list[Call]:
    """gate = kind(x gate_weight^T) * x up_weight^T: one launch for few rows and weights of one format."""
    kind, up = site.attr("kind"), site.scratch(tuple(gate.shape))
    if x.shape[0] <= FEW_TOKENS:
        first, second = (
            Product(planes_of(site, f"{part}_weight"), _bias(site, part), target)
            for part, target in (("gate", gate), ("up", up))
        )
        if first.kind == second.kind:
            return gate_up_calls(site, x, first, second, KINDS[kind])
    calls = []
    for part, target in (("gate", gate), ("up", up)):
        calls += linear_calls(site, f"{part}_weight", x, _bias(site, part), target)
    return [*calls, glu_call(site, gate, up, gate, kind)]


def _bias(site: Site, part: str) -> torch.Tensor | None:
    return site.tensor(f"{part}_bias") if site.has(f"{part}_bias") else None
