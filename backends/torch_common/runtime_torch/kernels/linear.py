"""Products of some rows with weights in blocks on tensor cores, and weights decoded for products of many."""

import triton
import triton.language as tl

from runtime_torch.kernels.rounding import unscaled
from runtime_torch.kernels.weights import above_scales, codes, scales, weights


@triton.jit(do_not_specialize=["num_tokens"])
def linear_many(
    x, exponents, lo, hi, scale, above, low, low_above, table, factors, bias, y, num_tokens, num_rows, num_columns,
    num_units, stride, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr,
    SCALE: tl.constexpr, MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, HAS_FACTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr, SPLITS: tl.constexpr, MODE: tl.constexpr, W: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BU: tl.constexpr,
):
    """y[split, BM tokens, BN rows of the weight]; y float32 [SPLITS, T, N], x [T, 32 // W, stride] of type MODE.

    The weight is the first operand: decoded, it stays in the registers that a product on sm90 takes it from, and the
    other side may be as few as 16 tokens. A part of a unit (elements whose bits lie alike) is a product of its own,
    and x has the order of that: nothing is interleaved.
    """
    split = tl.program_id(2)
    tokens = tl.program_id(0) * BM + tl.arange(0, BM)
    rows = tl.program_id(1) * BN + tl.arange(0, BN)
    is_row, is_token = rows < num_rows, tokens < num_tokens
    factor = is_row
    if HAS_FACTOR:
        factor = tl.load(factors + rows, mask=is_row, other=1.0)
    x += tokens.to(tl.int64)[:, None] * (stride * (32 // W))
    acc = tl.zeros([BN, BM], dtype=tl.float32)
    units = split * BU + tl.arange(0, BU)
    mask = is_row[:, None] & (units < num_units)[None, :]
    a, b = above_scales(above, low_above, rows, units, mask, num_units, SCALE, MINIMUM)
    for start in range(split * BU, num_units, SPLITS * BU):
        units = start + tl.arange(0, BU)
        mask = is_row[:, None] & (units < num_units)[None, :]
        unit = rows.to(tl.int64)[:, None] * num_units + units[None, :]
        later = units + SPLITS * BU
        is_later = is_row[:, None] & (later < num_units)[None, :]
        next_a, next_b = above_scales(above, low_above, rows, later, is_later, num_units, SCALE, MINIMUM)
        column = start * W + tl.arange(0, BU * W)
        x_mask = is_token[:, None] & (column < stride)[None, :]
        word, high = codes(lo, hi, rows, units, unit, mask, num_columns, LO_BITS, HI_BITS, SCALE, W)
        s, s_last, m, m_last = scales(
            *(scale, low, a, b, factor, unit, mask, GROUPS, SCALE, MINIMUM, HAS_FACTOR),
        )
        for part in tl.static_range(32 // W):
            xs = tl.load(x + (part * stride + column)[None, :], mask=x_mask, other=0.0)
            weight = weights(
                *(word, high, table, s, s_last, m, m_last),
                *(part, LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, CODEBOOK, W, MODE == 0),
            ).to(x.dtype.element_ty)
            acc = tl.dot(tl.reshape(weight, [BN, BU * W]), tl.trans(xs), acc, input_precision="ieee")
        a, b = next_a, next_b
    if MODE == 2:
        e = tl.load(exponents + tokens, mask=is_token, other=0)
        acc = unscaled(acc, e[None, :], factor[:, None], HAS_FACTOR)
    if HAS_BIAS:
        acc += tl.load(bias + rows, mask=is_row, other=0.0)[:, None]
    out = (split * num_tokens + tokens).to(tl.int64)[None, :] * num_rows + rows[:, None]
    tl.store(y + out, acc, mask=is_token[None, :] & is_row[:, None])


@triton.jit(do_not_specialize=["first"])
def decode_rows(
    lo, hi, scale, above, low, low_above, table, factors, made, first, num_rows, num_columns, num_units, stride,
    LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, HAS_FACTOR: tl.constexpr, MODE: tl.constexpr, W: tl.constexpr,
    BN: tl.constexpr, BU: tl.constexpr,
):
    """made [num_rows, 32 // W, stride] of type MODE: rows of a weight from row `first` on, in the order of x."""
    at = tl.program_id(0) * BN + tl.arange(0, BN)
    start = tl.program_id(1) * BU
    units = start + tl.arange(0, BU)
    is_row = at < num_rows
    rows = first + at
    mask = is_row[:, None] & (units < num_units)[None, :]
    factor = is_row
    if HAS_FACTOR:
        factor = tl.load(factors + rows, mask=is_row, other=1.0)
    place = (units * W)[:, None] + tl.arange(0, W)[None, :]
    out = at.to(tl.int64)[:, None, None] * (stride * (32 // W)) + place[None, :, :]
    inside = is_row[:, None, None] & (place < stride)[None, :, :]
    unit = rows.to(tl.int64)[:, None] * num_units + units[None, :]
    a, b = above_scales(above, low_above, rows, units, mask, num_units, SCALE, MINIMUM)
    word, high = codes(lo, hi, rows, units, unit, mask, num_columns, LO_BITS, HI_BITS, SCALE, W)
    s, s_last, m, m_last = scales(
        *(scale, low, a, b, factor, unit, mask, GROUPS, SCALE, MINIMUM, HAS_FACTOR),
    )
    for part in tl.static_range(32 // W):
        weight = weights(
            *(word, high, table, s, s_last, m, m_last),
            *(part, LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, CODEBOOK, W, MODE == 0),
        )
        tl.store(made + out + part * stride, weight.to(made.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["size"])
def sum_splits(partial, bias, y, size, num_rows, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """y = sum of partial [SPLITS, size] in a fixed order, plus the bias of each column."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for split in range(SPLITS):
        total += tl.load(partial + split * size.to(tl.int64) + at, mask=mask, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + at % num_rows, mask=mask, other=0.0)
    tl.store(y + at, total, mask=mask)
