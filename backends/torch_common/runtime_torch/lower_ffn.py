"""The gated feed-forward network: from nodes to calls."""

from __future__ import annotations

import torch

from runtime_torch.calls import Call, Site
from runtime_torch.lower_rows import glu_call
from runtime_torch.products import linear_calls


def lower_swiglu_ffn(site: Site) -> list[Call]:
    """Two products, the gate, one product."""
    x, y = site.tensor("x"), site.output()
    shape = (x.shape[0], site.shape("gate_weight")[0])
    gate, up = site.scratch(shape), site.scratch(shape)
    calls = []
    for part, target in (("gate", gate), ("up", up)):
        calls += linear_calls(site, f"{part}_weight", x, _bias(site, part), target)
    calls.append(glu_call(site, gate, up, gate, site.attr("kind")))
    return [*calls, *linear_calls(site, "down_weight", gate, _bias(site, "down"), y)]


def _bias(site: Site, part: str) -> torch.Tensor | None:
    return site.tensor(f"{part}_bias") if site.has(f"{part}_bias") else None
