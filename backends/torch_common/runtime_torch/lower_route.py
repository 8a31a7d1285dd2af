"""Choosing experts, and grouping the chosen: from nodes to calls."""

from __future__ import annotations

import torch

from runtime_torch.calls import Call, Site, cdiv, clamp, launch
from runtime_torch.kernels import moe_route as kernels
from runtime_torch.lower_rows import comparable
from runtime_torch.settings import next_power

SCORES = {"softmax": kernels.SOFTMAX, "sigmoid": kernels.SIGMOID, "softmax_selected": kernels.SOFTMAX_SELECTED}
MAX_EXPERTS = 1024
"""Scores that a warp holds in registers, 32 in each of its threads."""
MAX_TOP_K = 32
"""Rounds of finding the largest; a sort does no more than so many."""
MAX_PAIRS = 1 << 17
"""Every program of the counting reads all pairs, with few registers of them at a time: as long as that takes tens of
microseconds it ends before a radix sort has launched its passes."""


def lower_moe_route(site: Site) -> list[Call]:
    """Rounds of the largest score; by torch where a row has more experts than a warp holds, or many are chosen."""
    logits, expert_ids, weights = site.tensor("logits"), site.output(0), site.output(1)
    (num_tokens, num_experts), top_k = logits.shape, expert_ids.shape[1]
    if num_experts > MAX_EXPERTS or top_k > MAX_TOP_K:
        return [_route_by_torch(site)]
    block = next_power(num_experts)
    # one warp holds a row: what it compares needs no shared memory
    fitting = 4 if num_tokens > site.settings.tiles.programs else 1
    rows = clamp(site.settings.tiles.row_elements // 8 // block, 1, fitting) if not site.settings.is_interpreted else 64
    return [
        launch(
            kernels.moe_route,
            (cdiv(num_tokens, rows),),
            *(logits, site.optional("bias", logits), expert_ids, weights, num_tokens, num_experts),
            float(site.attr("scale")),
            TOP_K=top_k,
            SCORE=SCORES[site.attr("score")],
            NORMALIZE=bool(site.attr("normalize")),
            HAS_BIAS=site.has("bias"),
            BR=rows,
            BLOCK=block,
            BK=next_power(top_k),
            num_warps=min(rows, 4),
        )
    ]


def _route_by_torch(site: Site) -> Call:
    """Scores, a stable sort, and the weights of the chosen."""
    logits, expert_ids, weights = site.tensor("logits"), site.output(0), site.output(1)
    bias = site.tensor("bias") if site.has("bias") else None
    top_k, score, normalize, scale = (site.attr(n) for n in ("top_k", "score", "normalize", "scale"))

    def compute() -> None:
        scores = logits
        if score == "softmax":
            scores = torch.softmax(logits, 1)
        elif score == "sigmoid":
            scores = torch.sigmoid(logits)
        preference = scores if bias is None else scores + bias
        order = torch.sort(comparable(preference), dim=1, descending=True, stable=True).indices[:, :top_k]
        chosen = torch.gather(scores, 1, order)
        if score == "softmax_selected":
            chosen = torch.softmax(chosen, 1)
        elif normalize:
            chosen = chosen / (chosen.sum(1, keepdim=True) + 1e-20)
        expert_ids.copy_(order)
        torch.mul(chosen, scale, out=weights)

    return compute


def group_calls(
    site: Site, expert_ids: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, list[Call]]:
    """(order, borders, calls): pairs order[borders[e] : borders[e + 1]] chose expert e, lowest first; both int32."""
    num_pairs = expert_ids.numel()
    order = site.scratch((num_pairs,), torch.int32)
    borders = site.scratch((num_experts + 1,), torch.int32)
    if num_pairs > MAX_PAIRS:
        experts = torch.arange(num_experts + 1, dtype=torch.int32, device=expert_ids.device)

        def group() -> None:
            ordered = torch.sort(expert_ids.reshape(-1), stable=True)
            order.copy_(ordered.indices)
            torch.searchsorted(ordered.values, experts, out_int32=True, out=borders)

        return order, borders, [group]
    block = min(next_power(num_pairs), site.settings.tiles.elements)
    per_program = clamp(site.settings.tiles.row_elements // 8 // block, 1, next_power(num_experts + 1))
    arguments = (expert_ids, order, borders, num_pairs, num_experts)
    grid = (cdiv(num_experts + 1, per_program),)
    return order, borders, [launch(kernels.group_pairs, grid, *arguments, BE=per_program, BLOCK=block)]
