"""The gated feed-forward network: from nodes to calls."""

from __future__ import annotations

import torch

from runtime_torch.calls import Call, Site, planes_of
from runtime_torch.lower_rows import KINDS
from runtime_torch.operands import Operands
from runtime_torch.products import linear_calls, products_calls
from runtime_torch.products_few import FEW_TOKENS, Product, gate_up_calls


def lower_swiglu_ffn(site: Site) -> list[Call]:
    """Two products, the gate, one product; gated rows that tensor cores take are rounded where they are made."""
    x, y, kind = site.tensor("x"), site.output(), site.attr("kind")
    gate = site.scratch((x.shape[0], site.shape("gate_weight")[0]))
    up = site.scratch(tuple(gate.shape))
    calls = _few_gate_calls(site, x, gate, up, kind) if x.shape[0] <= FEW_TOKENS else []
    if calls:
        return [*calls, *linear_calls(site, "down_weight", gate, _bias(site, "down"), y)]
    calls = products_calls(site, x, {"gate": gate, "up": up})
    return [*calls, *linear_calls(site, "down_weight", Operands(site, gate, up, kind), _bias(site, "down"), y)]


def _few_gate_calls(site: Site, x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, kind: str) -> list[Call]:
    """gate = kind(x gate_weight^T) * x up_weight^T in one launch; none where the weights are of two formats."""
    first, second = (
        Product(planes_of(site, f"{part}_weight"), _bias(site, part), target)
        for part, target in (("gate", gate), ("up", up))
    )
    return gate_up_calls(site, x, first, second, KINDS[kind]) if first.kind == second.kind else []


def _bias(site: Site, part: str) -> torch.Tensor | None:
    return site.tensor(f"{part}_bias") if site.has(f"{part}_bias") else None
