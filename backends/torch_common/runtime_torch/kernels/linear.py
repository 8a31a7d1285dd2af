"""Products of many rows with weights in blocks: tiles on tensor cores, and sums of what was split along K."""

import triton
import triton.language as tl

from runtime_torch.kernels.blocks import decode, dot_weight


@triton.jit(do_not_specialize=["num_tokens"])
def linear_many(
    x, lo, hi, scale, above, low, low_above, table, bias, y, num_tokens, num_rows, num_columns,
    LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, HAS_BIAS: tl.constexpr, SPLITS: tl.constexpr, MODE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):
    """y[split, BM rows, BN columns]; x [T, K] in the type of operands, y float32 [SPLITS, T, N].

    A part of a unit (elements that share bytes) is a dot product of its own: nothing is interleaved.
    """
    W: tl.constexpr = LO_BITS if LO_BITS < 8 else 32
    PARTS: tl.constexpr = 32 // W
    num_units = tl.cdiv(num_columns, 32)
    split = tl.program_id(2)
    tokens = tl.program_id(0) * BM + tl.arange(0, BM)
    rows = tl.program_id(1) * BN + tl.arange(0, BN)
    j = tl.arange(0, W)
    acc = tl.zeros([BM, BN], dtype=tl.float32)
    for start in range(split * BU, num_units, SPLITS * BU):
        units = start + tl.arange(0, BU)
        mask = (rows < num_rows)[:, None] & (units < num_units)[None, :]
        x_mask = tokens < num_tokens
        for part in tl.static_range(PARTS):
            column = (units * 32)[None, :, None] + (part * W + j)[None, None, :]
            at = tokens.to(tl.int64)[:, None, None] * num_columns + column
            xs = tl.load(x + at, mask=x_mask[:, None, None] & (column < num_columns), other=0.0)
            value, s, m = decode(
                *(lo, hi, scale, above, low, low_above, table, rows, units, mask, num_columns, part),
                *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK),
            )
            xs = tl.reshape(xs, [BM, BU * W])
            weight = tl.reshape(value * s[:, :, None] + m[:, :, None], [BN, BU * W])
            acc = dot_weight(xs, weight, acc, MODE, MINIMUM)
    if HAS_BIAS:
        acc += tl.load(bias + rows, mask=rows < num_rows, other=0.0)[None, :]
    out = (split * num_tokens + tokens).to(tl.int64)[:, None] * num_rows + rows[None, :]
    tl.store(y + out, acc, mask=(tokens < num_tokens)[:, None] & (rows < num_rows)[None, :])


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
