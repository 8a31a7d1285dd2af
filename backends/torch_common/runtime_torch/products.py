"""Matrix products: kernels over blocks, torch over dense weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from runtime_torch.calls import Call, Planes, Site, cdiv, clamp, launch, planes_of
from runtime_torch.kernels import embed as embed_kernels
from runtime_torch.kernels import linear as kernels
from runtime_torch.kernels.blocks import BF16, BF16_EMULATED, F32
from runtime_torch.planes import LAYOUTS
from runtime_torch.products_few import FEW_TOKENS, Product, few_calls, sum_calls, together_calls
from runtime_torch.settings import Settings, next_power, num_warps, power_below

HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}


def lower_linear(site: Site) -> list[Call]:
    """y = x weight^T + bias."""
    bias = site.tensor("bias") if site.has("bias") else None
    return linear_calls(site, "weight", site.tensor("x"), bias, site.output())


def linear_calls(site: Site, port: str, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> list[Call]:
    """The product of x [T, K] with the weight at `port`, into y [T, N]."""
    fmt = site.spec(port).format.name
    if x.shape[0] <= FEW_TOKENS:
        return few_calls(site, planes_of(site, port), x, bias, y)
    if fmt in LAYOUTS or fmt.startswith("f8"):
        return _blocks(site, planes_of(site, port), x, bias, y)
    return dense_calls(site, site.tensor(port), x, bias, y)


def products_calls(site: Site, x: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> list[Call]:
    """The products of x [T, K] with the weights `PART_weight`, plus `PART_bias` where there is one, into `parts`."""
    biases = {part: site.tensor(f"{part}_bias") if site.has(f"{part}_bias") else None for part in parts}
    if x.shape[0] <= FEW_TOKENS:
        few = [Product(planes_of(site, f"{part}_weight"), biases[part], y) for part, y in parts.items()]
        return together_calls(site, x, few)
    return [call for part, y in parts.items() for call in linear_calls(site, f"{part}_weight", x, biases[part], y)]


def operand_mode(settings: Settings, fmt: str) -> int:
    """What operands of a product with weights in `fmt` are rounded to, see `kernels.blocks`."""
    if settings.precision == "f32" or fmt in ("f32", "f16"):
        return F32
    return BF16_EMULATED if settings.is_interpreted else BF16


def as_operand(site: Site, x: torch.Tensor, mode: int) -> tuple[torch.Tensor, list[Call]]:
    """x in the type of operands, and the call that makes it so."""
    if mode == F32:
        return x, []
    rounded = site.scratch(tuple(x.shape), torch.bfloat16)
    calls: list[Call] = [lambda: rounded.copy_(x)]
    if not site.settings.is_interpreted:
        return rounded, calls
    # the interpreter widens the smallest numbers of bf16 wrongly (Triton 3.9); torch does not
    wide = site.scratch(tuple(x.shape))
    return wide, [*calls, lambda: wide.copy_(rounded)]


def _blocks(site: Site, planes: Planes, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> list[Call]:
    tiles = site.settings.tiles
    (num_tokens, num_columns), num_rows = x.shape, y.shape[1]
    units = cdiv(num_columns, 32)
    rows = min(tiles.many_rows, max(tiles.min_dot, next_power(num_rows)))
    tokens = clamp(next_power(num_tokens), tiles.min_dot, tiles.many_tokens)
    per_step = max(min(tiles.many_units, next_power(units)), tiles.min_dot // planes.width)
    num_programs = cdiv(num_rows, rows) * cdiv(num_tokens, tokens)
    splits = power_below(clamp(tiles.programs // num_programs, 1, min(tiles.max_splits, cdiv(units, per_step))))
    out = y if splits == 1 else site.scratch((splits, num_tokens, num_rows))
    mode = operand_mode(site.settings, planes.fmt)
    x, calls = as_operand(site, x, mode)
    arguments = (x, *planes.pointers, y if bias is None else bias, out, num_tokens, num_rows, num_columns)
    constants = {**planes.constants, "HAS_BIAS": bias is not None and splits == 1, "SPLITS": splits, "MODE": mode}
    grid = (cdiv(num_tokens, tokens), cdiv(num_rows, rows), splits)
    sizes = {"BM": tokens, "BN": rows, "BU": per_step, "num_warps": num_warps(tokens * rows)}
    calls.append(launch(kernels.linear_many, grid, *arguments, **constants, **sizes))
    return [*calls, *sum_calls(site, out, bias, y, splits)]


def dense_calls(
    site: Site, weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor
) -> list[Call]:
    """By torch: in float32, or in halves with float32 sums."""
    calls: list[Call] = []
    kept = next((name for name, dtype in HALVES.items() if dtype == weight.dtype), None)
    if kept is None or site.settings.precision == "f32":
        # the stand-in on a processor widens a half weight at every use
        calls.append(lambda: torch.mm(x, weight.float().t(), out=y))
    elif kept == "bf16":
        rounded = site.scratch(tuple(x.shape), weight.dtype)
        calls += [lambda: rounded.copy_(x), *_half_product(site, rounded, weight, y)]
    else:
        calls += _f16_product(site, weight, x, y)
    if bias is not None:
        calls.append(lambda: y.add_(bias))
    return calls


def _half_product(site: Site, x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> list[Call]:
    if site.settings.wide_output:
        return [lambda: torch.mm(x, weight.t(), out_dtype=torch.float32, out=y)]
    narrow = site.scratch(tuple(y.shape), weight.dtype)
    return [lambda: torch.mm(x, weight.t(), out=narrow), lambda: y.copy_(narrow)]


def _f16_product(site: Site, weight: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> list[Call]:
    """Rows are scaled by powers of two into the range of f16, whatever their size: rounding alone is left."""
    scaled, halves = site.scratch(tuple(x.shape)), site.scratch(tuple(x.shape), torch.float16)
    largest, mantissa = site.scratch((x.shape[0], 1)), site.scratch((x.shape[0], 1))
    exponent = site.scratch((x.shape[0], 1), torch.int32)

    def scale() -> None:
        torch.amax(torch.abs(x, out=scaled), 1, keepdim=True, out=largest)
        torch.frexp(largest, out=(mantissa, exponent))
        # sums of K products stay below 65504 where the output is f16; elsewhere they are float32
        exponent.sub_(0 if not site.settings.wide_output else 12).clamp_(-100, 100)
        torch.ldexp(x, -exponent, out=scaled)
        halves.copy_(scaled)

    return [scale, *_half_product(site, halves, weight, y), lambda: torch.ldexp(y, exponent, out=y)]


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
    """Whether torch multiplies halves into float32 on this device: found out by doing it."""
    halves = torch.ones((16, 16), dtype=torch.bfloat16, device=device)
    y = torch.empty((16, 16), dtype=torch.float32, device=device)
    try:
        torch.mm(halves, halves, out_dtype=torch.float32, out=y)
    except (RuntimeError, TypeError):  # NotImplementedError is a RuntimeError: no such kernel in this build
        return False
    return bool((y == 16.0).all())


def tables(device: torch.device) -> dict[str, Any]:
    """Codebooks on the device, by format."""
    return {
        name: torch.tensor(layout.codebook, dtype=torch.float32, device=device)
        for name, layout in LAYOUTS.items()
        if layout.codebook
    }
