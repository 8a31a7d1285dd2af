"""Products of one or two rows, which are bound by memory: from nodes to calls."""

from __future__ import annotations

import torch

from runtime_torch.calls import Call, Planes, Site, cdiv, clamp, launch
from runtime_torch.kernels import linear, linear_few
from runtime_torch.settings import next_power, power_below

FEW_TOKENS = 2
"""Up to here every token reads the weight by itself: the second one finds most of it in the cache."""


def few_calls(site: Site, planes: Planes, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> list[Call]:
    """The product of x [T, K] with a weight in planes, into y [T, N]."""
    tiles = site.settings.tiles
    (num_tokens, num_columns), num_rows = x.shape, y.shape[1]
    units = cdiv(num_columns, 32)
    rows = min(tiles.few_rows, max(tiles.min_dot, next_power(num_rows)))
    per_step = min(tiles.few_units, next_power(units))
    num_programs = cdiv(num_rows, rows) * num_tokens
    splits = power_below(clamp(tiles.programs // num_programs, 1, min(tiles.max_splits, cdiv(units, per_step))))
    out = y if splits == 1 else site.scratch((splits, num_tokens, num_rows))
    arguments = (x, *planes.pointers, y if bias is None else bias, out, num_tokens, num_rows, num_columns)
    constants = {**planes.constants, "HAS_BIAS": bias is not None and splits == 1, "SPLITS": splits}
    grid = (cdiv(num_rows, rows), splits, num_tokens)
    kernel = launch(linear_few.linear_few, grid, *arguments, **constants, BN=rows, BU=per_step)
    return [kernel, *sum_calls(site, out, bias, y, splits)]


def sum_calls(site: Site, partial: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, splits: int) -> list[Call]:
    """y = the sum of partial [splits, T, N], plus the bias; nothing where there is one split."""
    if splits == 1:
        return []
    size, block = y.numel(), site.settings.tiles.elements
    arguments = (partial, y if bias is None else bias, y, size, y.shape[1])
    constants = {"SPLITS": splits, "HAS_BIAS": bias is not None, "BLOCK": block}
    return [launch(linear.sum_splits, (cdiv(size, block),), *arguments, **constants)]
