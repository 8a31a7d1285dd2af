"""Matrix products: kernels over blocks, torch over dense weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from runtime_torch.calls import Call, Site, cdiv, clamp, launch, planes_of
from runtime_torch.kernels import embed as embed_kernels
from runtime_torch.kernels.blocks import BF16, F16
from runtime_torch.operands import Operands, as_operands
from runtime_torch.planes import LAYOUTS
from runtime_torch.products_few import FEW_TOKENS, Product, few_calls, together_calls
from runtime_torch.products_many import finish_calls, half_product, many_calls
from runtime_torch.settings import next_power

HALVES = {torch.bfloat16: BF16, torch.float16: F16}


def lower_linear(site: Site) -> list[Call]:
    """y = x weight^T + bias."""
    bias = site.tensor("bias") if site.has("bias") else None
    return linear_calls(site, "weight", site.tensor("x"), bias, site.output())


def linear_calls(
    site: Site, port: str, x: torch.Tensor | Operands, bias: torch.Tensor | None, y: torch.Tensor
) -> list[Call]:
    """The product of x [T, K] with the weight at `port`, into y [T, N]. Products of one x share its `Operands`."""
    fmt, x = site.spec(port).format.name, as_operands(site, x)
    if x.shape[0] <= FEW_TOKENS:
        plain, calls = x.plain()
        return [*calls, *few_calls(site, planes_of(site, port), plain, bias, y)]
    if fmt in LAYOUTS or fmt.startswith("f8"):
        return many_calls(site, port, planes_of(site, port), x, bias, y)
    return dense_calls(site, site.tensor(port), x, bias, y)


def products_calls(site: Site, x: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> list[Call]:
    """The products of x [T, K] with the weights `PART_weight`, plus `PART_bias` where there is one, into `parts`."""
    biases = {part: site.tensor(f"{part}_bias") if site.has(f"{part}_bias") else None for part in parts}
    if x.shape[0] <= FEW_TOKENS:
        few = [Product(planes_of(site, f"{part}_weight"), biases[part], y) for part, y in parts.items()]
        return together_calls(site, x, few)
    shared = Operands(site, x)
    return [call for part, y in parts.items() for call in linear_calls(site, f"{part}_weight", shared, biases[part], y)]


def dense_calls(
    site: Site, weight: torch.Tensor, x: torch.Tensor | Operands, bias: torch.Tensor | None, y: torch.Tensor
) -> list[Call]:
    """By torch: in float32, or in halves with float32 sums."""
    x, settings = as_operands(site, x), site.settings
    if weight.dtype not in HALVES or settings.precision == "f32":
        plain, calls = x.plain()
        # the stand-in on a processor widens a half weight at every use
        return [
            *calls,
            lambda: torch.mm(plain, weight.float().t(), out=y),
            *finish_calls(site, y, None, None, bias, y),
        ]
    # sums of f16 in f16 are those of rows below 1; in float32, of rows of any size that f16 holds
    rounded, calls = x.rounded(HALVES[weight.dtype], step=1, top=15 if settings.wide_output else 0)
    made = y if settings.wide_output else site.scratch(tuple(y.shape), weight.dtype)
    product = half_product(site, rounded.rows, weight, made)
    return [*calls, product, *finish_calls(site, made, rounded.exponents, None, bias, y)]


def lower_embed(site: Site) -> list[Call]:
    """Rows of a table in any format."""
    tiles = site.settings.tiles
    token_ids, y = site.tensor("token_ids"), site.output()
    (num_tokens,), (_, num_columns) = token_ids.shape, site.shape("weight")
    planes = planes_of(site)
    units = cdiv(num_columns, 32)
    per_program = min(next_power(units), max(1, tiles.elements // 32))
    tokens = clamp(tiles.elements // (32 * per_program), 1, next_power(num_tokens))
    factor = float(site.attr("scale"))
    high = float(torch.tensor(factor, dtype=torch.float32))
    grid = (cdiv(num_tokens, tokens), cdiv(units, per_program))
    arguments = (token_ids, *planes.pointers, y, site.fault, num_tokens, num_columns, high, factor - high)
    constants = {**planes.constants, "SCALED": factor != 1.0, "BT": tokens, "BU": per_program}
    return [launch(embed_kernels.embed_blocks, grid, *arguments, **constants)]


def has_wide_output(device: torch.device) -> bool:
    """Whether torch multiplies halves into some columns of a float32 matrix on this device: found out by doing it."""
    y = torch.empty((16, 64), dtype=torch.float32, device=device)
    try:
        for dtype in HALVES:
            halves = torch.ones((32, 16), dtype=dtype, device=device)
            y.zero_()
            torch.mm(halves[:16], halves.t(), out_dtype=torch.float32, out=y[:, 16:48])
            if y.sum() != 16.0 * 16 * 32:
                return False
    except (RuntimeError, TypeError):  # NotImplementedError is a RuntimeError: no such kernel in this build
        return False
    return True


def tables(device: torch.device) -> dict[str, Any]:
    """Codebooks on the device, by format."""
    return {
        name: torch.tensor(layout.codebook, dtype=torch.float32, device=device)
        for name, layout in LAYOUTS.items()
        if layout.codebook
    }
