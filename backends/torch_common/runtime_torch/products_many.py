"""Products of three rows and more with weights in blocks: by tiles, or with the weight decoded piece by piece."""

from __future__ import annotations

import torch

from runtime_torch.calls import Call, Planes, Site, cdiv, clamp, launch
from runtime_torch.kernels import linear, rounding
from runtime_torch.kernels.blocks import F16, F32
from runtime_torch.operands import Operands, Rounded
from runtime_torch.products_few import sum_calls
from runtime_torch.settings import next_power, power_below


def many_calls(
    site: Site, port: str, planes: Planes, x: Operands, bias: torch.Tensor | None, y: torch.Tensor
) -> list[Call]:
    """The product of x [T, K] with the weight in planes at `port`, into y [T, N]."""
    # An H200 issues 132 x 128 lanes at 1.8 GHz; take 70 % of that, 790 TFLOP/s, 5.5 TB/s of the L2 cache. Tiles decode
    # a weight for every 128 tokens: 6 instructions, 0.29 ps, beside 0.32 ps of tensor cores, which other programs of
    # a multiprocessor hide in part: 0.45 ps. Decoding it once into memory writes 2 bytes, 0.36 ps, and takes 0.18 ps
    # of launches; the product reads them while it computes its 0.32 ps for 128 tokens. So 256 tokens take 0.9 ps by
    # tiles and 1.2 ps whole, 512 take 1.8 ps and 1.8 ps, 4096 take 14 ps and 11 ps.
    settings = site.settings
    mode = F32 if settings.precision == "f32" else F16
    factors = _factors(site, port) if mode == F16 else None
    num_columns = x.shape[1]
    rounded, calls = x.rounded(mode, planes.width)
    if x.shape[0] > settings.tiles.whole_tokens and mode == F16 and (settings.wide_output or settings.is_interpreted):
        return [*calls, *_whole(site, planes, factors, rounded, num_columns, bias, y)]
    return [*calls, *_tiles(site, planes, factors, rounded, num_columns, mode, bias, y)]


def _factors(site: Site, port: str) -> torch.Tensor | None:
    planes = site.inputs[port].planes
    return None if planes is None else planes.get("factors")


def _tiles(
    site: Site,
    planes: Planes,
    factors: torch.Tensor | None,
    x: Rounded,
    num_columns: int,
    mode: int,
    bias: torch.Tensor | None,
    y: torch.Tensor,
) -> list[Call]:
    tiles = site.settings.tiles
    num_tokens, num_rows = y.shape
    units = cdiv(num_columns, 32)
    tokens = clamp(next_power(num_tokens), tiles.min_dot, tiles.product_tokens)
    # every tile of rows reads all of x: of many tokens that is more than the weight
    wanted = tiles.product_rows * (2 if tokens > tiles.product_rows // 2 else 1)
    rows = min(wanted, max(tiles.min_dot, next_power(num_rows)))
    # codes of more than a field, and parts of a whole unit, take twice the registers
    most = tiles.product_units // (2 if planes.width == 32 or planes.constants["HI_BITS"] else 1)
    in_tile = tiles.product_tile // tokens // (64 if planes.width == 32 else 32)
    per_step = max(1, min(most, next_power(units), in_tile))
    per_step = max(per_step, tiles.min_dot // planes.width)
    warps = 8 if rows >= 128 else 4
    num_programs = cdiv(num_rows, rows) * cdiv(num_tokens, tokens)
    # registers leave room for two programs of four warps on a multiprocessor, where `programs` counts four
    room = tiles.programs * 2 // warps
    splits = power_below(clamp(room // num_programs, 1, min(tiles.max_splits, cdiv(units, per_step))))
    out = y if splits == 1 else site.scratch((splits, num_tokens, num_rows))
    nothing = x.values
    arguments = (
        *(x.values, nothing if x.exponents is None else x.exponents, *planes.pointers),
        *(nothing if factors is None else factors, nothing if bias is None else bias, out),
        *(num_tokens, num_rows, num_columns, units, x.stride),
    )
    kernel = launch(
        linear.linear_many,
        (cdiv(num_tokens, tokens), cdiv(num_rows, rows), splits),
        *arguments,
        **planes.constants,
        HAS_FACTOR=factors is not None,
        HAS_BIAS=bias is not None and splits == 1,
        SPLITS=splits,
        MODE=mode,
        W=planes.width,
        BM=tokens,
        BN=rows,
        BU=per_step,
        num_warps=warps,
        # a table would be copied to shared memory ahead of use, number by number
        num_stages=1 if planes.constants["CODEBOOK"] else 2,
    )
    return [kernel, *sum_calls(site, out, bias, y, splits)]


def _whole(
    site: Site,
    planes: Planes,
    factors: torch.Tensor | None,
    x: Rounded,
    num_columns: int,
    bias: torch.Tensor | None,
    y: torch.Tensor,
) -> list[Call]:
    """Pieces of the weight that stay in the cache between the kernel that decodes them and torch's product."""
    tiles = site.settings.tiles
    num_rows, width = y.shape[1], x.rows.shape[1]
    per_piece = clamp(tiles.piece_bytes // (2 * width) // 128 * 128, 128, num_rows)
    made = site.scratch((min(per_piece, num_rows), width), torch.float16)
    calls: list[Call] = []
    for first in range(0, num_rows, per_piece):
        rows = min(per_piece, num_rows - first)
        piece = made[:rows]
        calls.append(_decode(site, planes, factors, piece, first, (num_columns, cdiv(num_columns, 32), x.stride)))
        calls.append(half_product(site, x.rows, piece, y[:, first : first + rows]))
    return [*calls, *finish_calls(site, y, x.exponents, factors, bias, y)]


def _decode(
    site: Site,
    planes: Planes,
    factors: torch.Tensor | None,
    made: torch.Tensor,
    first: int,
    sizes: tuple[int, int, int],
) -> Call:
    tiles = site.settings.tiles
    units = cdiv(sizes[2], planes.width)
    per_program = min(next_power(units), max(1, tiles.decode_units))
    rows = clamp(tiles.decode_units // per_program, 1, next_power(made.shape[0]))
    return launch(
        linear.decode_rows,
        (cdiv(made.shape[0], rows), cdiv(units, per_program)),
        *(*planes.pointers, made if factors is None else factors, made, first, made.shape[0], *sizes),
        **planes.constants,
        HAS_FACTOR=factors is not None,
        MODE=F16,
        W=planes.width,
        BN=rows,
        BU=per_program,
    )


def half_product(site: Site, x: torch.Tensor, weight: torch.Tensor, made: torch.Tensor) -> Call:
    """made [T, N] = x weight^T, of halves: in float32, or in their own type where the device has no wider output."""
    if made.dtype == weight.dtype:
        return lambda: torch.mm(x, weight.t(), out=made)
    if site.settings.wide_output:
        return lambda: torch.mm(x, weight.t(), out_dtype=torch.float32, out=made)
    # the stand-in on a processor: products of halves are exact in float32
    return lambda: made.copy_(torch.mm(x.float(), weight.float().t()))


def finish_calls(
    site: Site,
    made: torch.Tensor,
    exponents: torch.Tensor | None,
    factors: torch.Tensor | None,
    bias: torch.Tensor | None,
    y: torch.Tensor,
) -> list[Call]:
    """y [T, N] = made 2^exponent / factor + bias, in one launch; nothing where nothing is to be done."""
    if made is y and exponents is None and factors is None:
        return [] if bias is None else [lambda: y.add_(bias)]
    num_tokens, num_rows = y.shape
    block = min(next_power(num_rows), site.settings.tiles.elements)
    tokens = clamp(2 * site.settings.tiles.elements // block, 1, next_power(num_tokens))
    pointers = (made, *(y if p is None else p for p in (exponents, factors, bias)), y)
    constants = {"HAS_EXPONENT": exponents is not None, "HAS_FACTOR": factors is not None, "HAS_BIAS": bias is not None}
    grid = (cdiv(num_tokens, tokens), cdiv(num_rows, block))
    return [
        launch(
            rounding.finish,
            grid,
            *(*pointers, num_tokens, num_rows),
            **constants,
            IN_PLACE=made is y,
            BT=tokens,
            BLOCK=block,
        )
    ]
