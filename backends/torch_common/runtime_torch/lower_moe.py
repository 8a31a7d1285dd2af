"""Mixture of experts: from nodes to calls."""

from __future__ import annotations

import torch

from runtime_torch.calls import Call, Planes, Site, cdiv, clamp, launch, planes_of
from runtime_torch.kernels import moe as kernels
from runtime_torch.lower_rows import comparable
from runtime_torch.products import as_operand, operand_mode
from runtime_torch.settings import next_power, num_warps

FEW_PAIRS = 32
"""Up to here every (token, expert) pair reads its expert by itself: few experts are chosen twice."""


def lower_moe_route(site: Site) -> list[Call]:
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

    return [compute]


def lower_moe_linear(site: Site) -> list[Call]:
    """Pair by pair, or grouped by expert; then the weighted sum, where one is wanted."""
    x, expert_ids, y = site.tensor("x"), site.tensor("expert_ids"), site.output()
    num_tokens, top_k = expert_ids.shape
    num_experts, num_rows, num_columns = site.shape("weight")
    per_row = 1 if site.attr("per_expert_input") else top_k
    x = x.view(-1, num_columns)
    num_pairs = num_tokens * top_k
    combines = site.has("expert_weights")
    made = site.scratch((num_tokens, top_k, num_rows)) if combines else y.view(num_tokens, top_k, num_rows)
    planes = planes_of(site)
    bias = site.optional("bias", x)
    sizes = (num_experts, num_rows, num_columns, per_row)
    if num_pairs <= FEW_PAIRS:
        calls = _few(site, planes, (x, expert_ids, bias, made), sizes)
    else:
        calls = _many(site, planes, (x, expert_ids, bias, made), sizes)
    if combines:
        shares = site.tensor("expert_weights").view(num_tokens, top_k, 1)
        calls.append(lambda: torch.mul(made, shares, out=made))
        calls.append(lambda: torch.sum(made, 1, out=y))
    return calls


def _few(site: Site, planes: Planes, tensors: tuple[torch.Tensor, ...], sizes: tuple[int, ...]) -> list[Call]:
    x, expert_ids, bias, made = tensors
    _, num_rows, num_columns, per_row = sizes
    tiles = site.settings.tiles
    rows = min(tiles.few_rows, next_power(num_rows))
    units = min(tiles.few_units, next_power(cdiv(num_columns, 32)))
    arguments = (x, expert_ids, *planes.pointers, bias, made, site.fault, num_rows, num_columns, per_row)
    constants = {**planes.constants, "HAS_BIAS": site.has("bias"), "BN": rows, "BU": units}
    return [launch(kernels.moe_few, (cdiv(num_rows, rows), expert_ids.numel()), *arguments, **constants)]


def _many(site: Site, planes: Planes, tensors: tuple[torch.Tensor, ...], sizes: tuple[int, ...]) -> list[Call]:
    x, expert_ids, bias, made = tensors
    num_experts, num_rows, num_columns, per_row = sizes
    tiles, num_pairs = site.settings.tiles, expert_ids.numel()
    order = site.scratch((num_pairs,), torch.int32)
    borders = site.scratch((num_experts + 1,), torch.int32)
    experts = torch.arange(num_experts + 1, dtype=torch.int32, device=x.device)

    def group() -> None:
        ordered = torch.sort(expert_ids.reshape(-1), stable=True)
        order.copy_(ordered.indices)
        torch.searchsorted(ordered.values, experts, out_int32=True, out=borders)

    mode = operand_mode(site.settings, planes.fmt)
    x, calls = as_operand(site, x, mode)
    tokens = clamp(next_power(cdiv(num_pairs, num_experts)), tiles.min_dot, tiles.many_tokens)
    rows = min(tiles.many_rows, max(tiles.min_dot, next_power(num_rows)))
    units = max(min(tiles.many_units, next_power(cdiv(num_columns, 32))), tiles.min_dot // planes.width)
    arguments = (x, order, borders, *planes.pointers, bias, made, site.fault)
    numbers = (num_pairs, num_experts, num_rows, num_columns, per_row)
    constants = {**planes.constants, "HAS_BIAS": site.has("bias"), "MODE": mode, "EXPERTS": next_power(num_experts)}
    grid = (num_pairs // tokens + num_experts, cdiv(num_rows, rows))
    kernel = launch(
        kernels.moe_many,
        grid,
        *arguments,
        *numbers,
        **constants,
        BM=tokens,
        BN=rows,
        BU=units,
        num_warps=num_warps(tokens * rows),
    )
    return [group, *calls, kernel]
