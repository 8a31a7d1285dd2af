"""Products with the weights of chosen experts, whose pairs with tokens are grouped by expert into tiles."""

import triton
import triton.language as tl

from runtime_torch.kernels.elementwise import gated
from runtime_torch.kernels.rounding import unscaled
from runtime_torch.kernels.weights import above_scales, codes, scales, weights


@triton.jit
def _place(borders, num_experts, num_tiles, blocks, EXPERTS: tl.constexpr, BM: tl.constexpr, GROUP: tl.constexpr):
    """(expert, first, end, block) of this program: slots first .. first + BM before `end`, and a block of columns.

    The tiles of expert e begin at borders[e] // BM + e. GROUP tiles go through all blocks together: then the weights of
    an expert, and the rows of a tile, are read from memory once.
    """
    program = tl.program_id(0)
    group = program // (GROUP * blocks)
    inside = program - group * (GROUP * blocks)
    in_group = tl.minimum(num_tiles - group * GROUP, GROUP)
    tile = group * GROUP + inside % in_group
    experts = tl.arange(0, EXPERTS)
    starts = tl.load(borders + experts, mask=experts < num_experts, other=0)
    begins = tl.where(experts < num_experts, starts // BM + experts, 0x7FFFFFFF)
    expert = tl.sum((begins <= tile).to(tl.int32), axis=0) - 1
    start = tl.load(borders + expert)
    end = tl.load(borders + expert + 1)
    return expert, start + (tile - (start // BM + expert)) * BM, end, inside // in_group


@triton.jit
def _dense(
    x, lo, up_lo, rows, is_row, is_pair, num_columns, stride, KIND: tl.constexpr, MODE: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):
    """Sums [BN, BM] of `rows` of a weight, and of a second one, with rows of x [BM, 1]: operands as they lie."""
    acc = tl.zeros([BN, BM], dtype=tl.float32)
    up = tl.zeros([BN, BM], dtype=tl.float32)
    for first in range(0, num_columns, BK):
        column = (first + tl.arange(0, BK))[None, :]
        xs = tl.load(x + column, mask=is_pair[:, None] & (column < stride), other=0.0)
        if MODE == 3:
            xs = xs.to(tl.float32)
        at = rows.to(tl.int64)[:, None] * num_columns + column
        mask = is_row[:, None] & (column < num_columns)
        weight = tl.load(lo + at, mask=mask, other=0.0).to(xs.dtype)
        acc = tl.dot(weight, tl.trans(xs), acc, input_precision="ieee")
        if KIND >= 0:
            weight = tl.load(up_lo + at, mask=mask, other=0.0).to(xs.dtype)
            up = tl.dot(weight, tl.trans(xs), up, input_precision="ieee")
    return acc, up


@triton.jit
def _blocks(
    x, lo, hi, scale, above, low, low_above, table, factor, up_lo, up_hi, up_scale, up_above, up_low, up_low_above,
    up_factor, rows, is_row, is_pair, num_columns, num_units, stride, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr,
    OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr, MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr,
    HAS_FACTOR: tl.constexpr, UP_FACTOR: tl.constexpr, KIND: tl.constexpr, W: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BU: tl.constexpr,
):
    """As `_dense`, of weights in planes; x is in the order of `kernels.linear.linear_many`."""
    acc = tl.zeros([BN, BM], dtype=tl.float32)
    up = tl.zeros([BN, BM], dtype=tl.float32)
    units = tl.arange(0, BU)
    mask = is_row[:, None] & (units < num_units)[None, :]
    a, b = above_scales(above, low_above, rows, units, mask, num_units, SCALE, MINIMUM)
    up_a, up_b = a, b
    if KIND >= 0:
        up_a, up_b = above_scales(up_above, up_low_above, rows, units, mask, num_units, SCALE, MINIMUM)
    for first in range(0, num_units, BU):
        units = first + tl.arange(0, BU)
        mask = is_row[:, None] & (units < num_units)[None, :]
        unit = rows.to(tl.int64)[:, None] * num_units + units[None, :]
        later = units + BU
        is_later = is_row[:, None] & (later < num_units)[None, :]
        word, high = codes(lo, hi, rows, units, unit, mask, num_columns, LO_BITS, HI_BITS, SCALE, W)
        s, t, m, o = scales(scale, low, a, b, factor, unit, mask, GROUPS, SCALE, MINIMUM, HAS_FACTOR)
        a, b = above_scales(above, low_above, rows, later, is_later, num_units, SCALE, MINIMUM)
        if KIND >= 0:
            up_word, up_high = codes(up_lo, up_hi, rows, units, unit, mask, num_columns, LO_BITS, HI_BITS, SCALE, W)
            up_s, up_t, up_m, up_o = scales(
                *(up_scale, up_low, up_a, up_b, up_factor, unit, mask, GROUPS, SCALE, MINIMUM, UP_FACTOR)
            )
            up_a, up_b = above_scales(up_above, up_low_above, rows, later, is_later, num_units, SCALE, MINIMUM)
        column = (first * W + tl.arange(0, BU * W))[None, :]
        x_mask = is_pair[:, None] & (column < stride)
        for part in tl.static_range(32 // W):
            xs = tl.load(x + (part * stride + column), mask=x_mask, other=0.0)
            weight = weights(
                *(word, high, table, s, t, m, o),
                *(part, LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, CODEBOOK, W, x.dtype.element_ty == tl.float32),
            )
            acc = _dot(weight, xs, acc, BN, BU * W)
            if KIND >= 0:
                weight = weights(
                    *(up_word, up_high, table, up_s, up_t, up_m, up_o),
                    *(part, LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, CODEBOOK, W, x.dtype.element_ty == tl.float32),
                )
                up = _dot(weight, xs, up, BN, BU * W)
    return acc, up


@triton.jit
def _dot(weight, xs, acc, BN: tl.constexpr, BK: tl.constexpr):
    return tl.dot(tl.reshape(weight.to(xs.dtype), [BN, BK]), tl.trans(xs), acc, input_precision="ieee")


@triton.jit
def _finished(
    acc, exponent, factor, bias, rows, is_row, MODE: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_BIAS: tl.constexpr
):
    """acc [BN, BM] without the powers of two of its operands, plus the bias of its rows."""
    if MODE == 2:
        acc = unscaled(acc, exponent[None, :], factor[:, None], HAS_FACTOR)
    if HAS_BIAS:
        acc += tl.load(bias + rows, mask=is_row, other=0.0)[:, None]
    return acc


@triton.jit(do_not_specialize=["num_tiles"])
def moe_many(
    x, exponents, order, borders, shares, lo, hi, scale, above, low, low_above, table, factors, bias, up_lo, up_hi,
    up_scale, up_above, up_low, up_low_above, up_factors, up_bias, y, fault, num_tiles, num_experts, num_rows,
    num_columns, num_units, stride, per_row, alpha, limit, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr,
    OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr, MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr,
    HAS_FACTOR: tl.constexpr, UP_FACTOR: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SHARES: tl.constexpr,
    KIND: tl.constexpr, MODE: tl.constexpr, W: tl.constexpr, EXPERTS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BU: tl.constexpr, GROUP: tl.constexpr,
):
    """y[pair, n] of pairs order[borders[e] : borders[e + 1]] with expert e, times its share; KIND as `kernels.moe_few`.

    x and its exponents are as `kernels.linear.linear_many` takes them, one row for `per_row` pairs, and as there the
    weight is the first operand. y is float32, or what operands of the next product are.
    """
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    expert, start, end, block = _place(borders, num_experts, num_tiles, tl.cdiv(num_rows, BN), EXPERTS, BM, GROUP)
    if start >= end:
        return
    slots = start + tl.arange(0, BM)
    is_pair = slots < end
    pairs = tl.load(order + slots, mask=is_pair, other=0)
    x_row = pairs // per_row
    n = block * BN + tl.arange(0, BN)
    is_row = n < num_rows
    rows = expert * num_rows + n
    factor, up_factor, exponent = is_row, is_row, x_row
    if HAS_FACTOR:
        factor = tl.load(factors + rows, mask=is_row, other=1.0)
    if UP_FACTOR:
        up_factor = tl.load(up_factors + rows, mask=is_row, other=1.0)
    if MODE == 2:
        exponent = tl.load(exponents + x_row, mask=is_pair, other=0)
    x += x_row.to(tl.int64)[:, None] * (stride * (32 // W))
    if SCALE == 3:
        acc, up = _dense(x, lo, up_lo, rows, is_row, is_pair, num_columns, stride, KIND, MODE, BM, BN, BU * 32)
    else:
        acc, up = _blocks(
            *(x, lo, hi, scale, above, low, low_above, table, factor, up_lo, up_hi, up_scale, up_above, up_low),
            *(up_low_above, up_factor, rows, is_row, is_pair, num_columns, num_units, stride, LO_BITS, HI_BITS),
            *(OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, HAS_FACTOR, UP_FACTOR, KIND, W, BM, BN, BU),
        )
    acc = _finished(acc, exponent, factor, bias, rows, is_row, MODE, HAS_FACTOR, HAS_BIAS)
    if KIND >= 0:
        up = _finished(up, exponent, up_factor, up_bias, rows, is_row, MODE, UP_FACTOR, HAS_BIAS)
        acc = gated(acc, up, alpha, limit, KIND)
    if HAS_SHARES:
        acc *= tl.load(shares + pairs, mask=is_pair, other=0.0)[None, :]
    out = pairs.to(tl.int64)[None, :] * num_rows + n[:, None]
    tl.store(y + out, acc.to(y.dtype.element_ty), mask=is_pair[None, :] & is_row[:, None])


@triton.jit(do_not_specialize=["num_tokens"])
def sum_chosen(made, y, fault, num_tokens, num_rows, TOP_K: tl.constexpr, BT: tl.constexpr, BLOCK: tl.constexpr):
    """y [T, N] = the sum of made [T, TOP_K, N] over the chosen, in their order."""
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    tokens = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)[:, None]
    n = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    mask = (tokens < num_tokens) & (n < num_rows)
    total = tl.zeros([BT, BLOCK], dtype=tl.float32)
    for i in tl.static_range(TOP_K):
        total += tl.load(made + (tokens * TOP_K + i) * num_rows + n, mask=mask, other=0.0)
    tl.store(y + tokens * num_rows + n, total, mask=mask)
