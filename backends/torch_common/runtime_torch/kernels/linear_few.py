"""Products of few rows with weights in blocks: one row of x at a time, bound by memory."""

import triton
import triton.language as tl

from runtime_torch.kernels.blocks import decode


@triton.jit(do_not_specialize=["num_tokens"])
def linear_few(
    x, lo, hi, scale, above, low, low_above, table, bias, y, num_tokens, num_rows, num_columns,
    LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, HAS_BIAS: tl.constexpr, SPLITS: tl.constexpr, BN: tl.constexpr,
    BU: tl.constexpr,
):
    """y[split, t, n] for BN rows of the weight and one row of x; x float32 [T, K], y float32 [SPLITS, T, N]."""
    W: tl.constexpr = LO_BITS if LO_BITS < 8 else 32
    PARTS: tl.constexpr = 32 // W
    num_units = tl.cdiv(num_columns, 32)
    split = tl.program_id(1)
    token = tl.program_id(2)
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    j = tl.arange(0, W)
    x += token.to(tl.int64) * num_columns
    acc = tl.zeros([BN, BU], dtype=tl.float32)
    for start in range(split * BU, num_units, SPLITS * BU):
        units = start + tl.arange(0, BU)
        mask = (rows < num_rows)[:, None] & (units < num_units)[None, :]
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
        total += tl.load(bias + rows, mask=rows < num_rows, other=0.0)
    out = (split * num_tokens + token).to(tl.int64) * num_rows + rows
    tl.store(y + out, total, mask=rows < num_rows)
