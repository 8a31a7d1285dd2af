"""Products with the weights of chosen experts: pair by pair, or grouped by expert into tiles."""

import triton
import triton.language as tl

from runtime_torch.kernels.blocks import decode, dot_weight


@triton.jit
def moe_few(
    x, expert_ids, lo, hi, scale, above, low, low_above, table, bias, y, fault, num_rows, num_columns, per_row,
    LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, HAS_BIAS: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):
    """y[pair, n]: expert expert_ids[pair] on row pair // per_row of x float32; planes are [experts * num_rows, ...]."""
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    W: tl.constexpr = LO_BITS if LO_BITS < 8 else 32
    PARTS: tl.constexpr = 32 // W
    num_units = tl.cdiv(num_columns, 32)
    pair = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    expert = tl.load(expert_ids + pair)
    rows = expert * num_rows + n
    j = tl.arange(0, W)
    x += (pair // per_row).to(tl.int64) * num_columns
    acc = tl.zeros([BN, BU], dtype=tl.float32)
    for start in range(0, num_units, BU):
        units = start + tl.arange(0, BU)
        mask = (n < num_rows)[:, None] & (units < num_units)[None, :]
        for part in tl.static_range(PARTS):
            at = units[:, None] * 32 + part * W + j[None, :]
            xs = tl.load(x + at, mask=at < num_columns, other=0.0)
            value, s, m = decode(
                *(lo, hi, scale, above, low, low_above, table, rows, units, mask, num_columns, part),
                *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK),
            )
            acc += s * tl.sum(value * xs[None, :, :], axis=2)
            if MINIMUM:
                acc += m * tl.sum(xs, axis=1)[None, :]
    total = tl.sum(acc, axis=1)
    if HAS_BIAS:
        total += tl.load(bias + rows, mask=n < num_rows, other=0.0)
    tl.store(y + pair.to(tl.int64) * num_rows + n, total, mask=n < num_rows)


@triton.jit(do_not_specialize=["num_pairs"])
def moe_many(
    x, order, borders, lo, hi, scale, above, low, low_above, table, bias, y, fault, num_pairs, num_experts, num_rows,
    num_columns, per_row, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr,
    SCALE: tl.constexpr, MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, HAS_BIAS: tl.constexpr, MODE: tl.constexpr,
    EXPERTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):
    """Pairs order[borders[e] : borders[e + 1]] belong to expert e, whose tiles begin at borders[e] // BM + e."""
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    W: tl.constexpr = LO_BITS if LO_BITS < 8 else 32
    PARTS: tl.constexpr = 32 // W
    num_units = tl.cdiv(num_columns, 32)
    tile = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    starts = tl.load(borders + experts, mask=experts < num_experts, other=0)
    begins = tl.where(experts < num_experts, starts // BM + experts, 0x7FFFFFFF)
    expert = tl.sum((begins <= tile).to(tl.int32), axis=0) - 1
    start = tl.load(borders + expert)
    end = tl.load(borders + expert + 1)
    first = start + (tile - (start // BM + expert)) * BM
    if first >= end:
        return
    slots = first + tl.arange(0, BM)
    pairs = tl.load(order + slots, mask=slots < end, other=0)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    rows = expert * num_rows + n
    j = tl.arange(0, W)
    acc = tl.zeros([BM, BN], dtype=tl.float32)
    for unit in range(0, num_units, BU):
        units = unit + tl.arange(0, BU)
        mask = (n < num_rows)[:, None] & (units < num_units)[None, :]
        x_mask = slots < end
        for part in tl.static_range(PARTS):
            column = (units * 32)[None, :, None] + (part * W + j)[None, None, :]
            at = (pairs // per_row).to(tl.int64)[:, None, None] * num_columns + column
            xs = tl.load(x + at, mask=x_mask[:, None, None] & (column < num_columns), other=0.0)
            value, s, m = decode(
                *(lo, hi, scale, above, low, low_above, table, rows, units, mask, num_columns, part),
                *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK),
            )
            xs = tl.reshape(xs, [BM, BU * W])
            weight = tl.reshape(value * s[:, :, None] + m[:, :, None], [BN, BU * W])
            acc = dot_weight(xs, weight, acc, MODE, MINIMUM)
    if HAS_BIAS:
        acc += tl.load(bias + rows, mask=n < num_rows, other=0.0)[None, :]
    out = pairs.to(tl.int64)[:, None] * num_rows + n[None, :]
    tl.store(y + out, acc, mask=(slots < end)[:, None] & (n < num_rows)[None, :])
