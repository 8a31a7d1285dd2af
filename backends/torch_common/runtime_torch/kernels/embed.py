"""Rows of a table in blocks."""

import triton
import triton.language as tl

from runtime_torch.kernels.blocks import decode


@triton.jit(do_not_specialize=["num_tokens"])
def embed_blocks(
    token_ids, lo, hi, scale, above, low, low_above, table, y, fault, num_tokens, num_columns, factor, factor_rest,
    LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, SCALED: tl.constexpr, BT: tl.constexpr, BU: tl.constexpr,
):
    """y float32 [T, K]: row token_ids[t], times factor + factor_rest (a float64 in two parts)."""
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    W: tl.constexpr = LO_BITS if LO_BITS < 8 else 32
    PARTS: tl.constexpr = 32 // W
    num_units = tl.cdiv(num_columns, 32)
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    units = tl.program_id(1) * BU + tl.arange(0, BU)
    rows = tl.load(token_ids + tokens, mask=tokens < num_tokens, other=0)
    mask = (tokens < num_tokens)[:, None] & (units < num_units)[None, :]
    j = tl.arange(0, W)
    for part in tl.static_range(PARTS):
        value, s, m = decode(
            *(lo, hi, scale, above, low, low_above, table, rows, units, mask, num_columns, part),
            *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK),
        )
        v = value * s[:, :, None] + m[:, :, None]
        if SCALED:
            v = v * factor + v * factor_rest
        column = (units * 32)[None, :, None] + (part * W + j)[None, None, :]
        at = tokens.to(tl.int64)[:, None, None] * num_columns + column
        tl.store(y + at, v, mask=mask[:, :, None] & (column < num_columns))
