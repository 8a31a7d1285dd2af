"""Decoding of planes (see `runtime_torch.planes`) inside a tile, and the rounding of operands."""

import triton
import triton.language as tl

HALF, SUPER, EXPONENT, DENSE, FLOAT8 = 0, 1, 2, 3, 4
"""Kinds of scales; DENSE weights have none and need not be whole units, FLOAT8 have one for four units."""
F32, BF16, F16, BF16_EMULATED, F16_EMULATED = 0, 1, 2, 3, 4
"""What operands of a dot product are rounded to; the emulated ones are then kept in float32, for the interpreter."""


@triton.jit
def operand(v, MODE: tl.constexpr):
    """`v` float32 as an operand: in the type of the tensor cores, or rounded to it (nearest, ties to even)."""
    if MODE == 1:
        v = v.to(tl.bfloat16)
    elif MODE == 2:
        v = v.to(tl.float16)
    elif MODE == 3:
        bits = v.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        v = tl.where(v == v, rounded.to(tl.float32, bitcast=True), v)
    elif MODE == 4:
        v = v.to(tl.float16).to(tl.float32)
    return v


@triton.jit
def decode(
    lo, hi, scale, above, low, low_above, table, rows, units, mask, num_columns, PART: tl.constexpr,
    LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr,
):
    """Part PART of units `units` [U] of rows `rows` [N]: codes [N, U, W], scales [N, U] and minima [N, U], float32."""
    W: tl.constexpr = LO_BITS if LO_BITS < 8 else 32
    PARTS: tl.constexpr = 32 // W
    j = tl.arange(0, W)
    if SCALE == 3:
        column = (units * 32)[:, None] + j[None, :]
        at = rows.to(tl.int64)[:, None, None] * num_columns + column[None, :, :]
        value = tl.load(lo + at, mask=mask[:, :, None] & (column < num_columns)[None, :, :], other=0.0).to(tl.float32)
        s = tl.full(mask.shape, 1.0, dtype=tl.float32)
        m = tl.zeros_like(s)
    elif SCALE == 4:
        unit = rows.to(tl.int64)[:, None] * (num_columns // 32) + units[None, :]
        value = tl.load(lo + unit[:, :, None] * W + j[None, None, :], mask=mask[:, :, None], other=0.0).to(tl.float32)
        s = tl.load(scale + unit // 4, mask=mask, other=0.0)
        m = tl.zeros_like(s)
    else:
        unit = rows.to(tl.int64)[:, None] * (num_columns // 32) + units[None, :]
        code = tl.load(lo + unit[:, :, None] * W + j[None, None, :], mask=mask[:, :, None], other=0).to(tl.int32)
        if LO_BITS < 8:
            code = (code >> (PART * LO_BITS)) & ((1 << LO_BITS) - 1)
        if HI_BITS == 1:
            word = tl.load(hi + unit, mask=mask, other=0)
            code = code | (((word[:, :, None] >> (PART * LO_BITS + j)[None, None, :]) & 1) << LO_BITS)
        if HI_BITS == 2:
            words = tl.load(hi + unit[:, :, None] * 2 + (j // 2)[None, None, :], mask=mask[:, :, None], other=0)
            code = code | (((words >> (PART * LO_BITS + j % 2 * 2)[None, None, :]) & 3) << LO_BITS)
        if CODEBOOK:
            value = tl.load(table + code)
        elif LO_BITS == 8:
            value = (code - OFFSET).to(tl.float32)
        else:
            # code / 2^bits in a mantissa: conversions of integers take two to four times as long as these three steps
            BITS: tl.constexpr = LO_BITS + HI_BITS
            value = ((code << (23 - BITS)) | 0x3F800000).to(tl.float32, bitcast=True)
            value = value - (1.0 + OFFSET / (1 << BITS))
        group = unit * GROUPS + (PART * GROUPS) // PARTS
        if SCALE == 2:
            e = tl.load(scale + group, mask=mask, other=0).to(tl.int32)
            # half of 2 ** (e - 127); below e = 2 a float32 is subnormal
            bits = tl.where(e < 2, 0x00200000 << tl.minimum(e, 1), (e - 1) << 23)
            s = bits.to(tl.float32, bitcast=True)
        else:
            s = tl.load(scale + group, mask=mask, other=0).to(tl.float32)
        if SCALE == 1:
            s = s * tl.load(above + unit // 8, mask=mask, other=0).to(tl.float32)
        if LO_BITS < 8 and not CODEBOOK:
            s = s * (1 << (LO_BITS + HI_BITS))
        m = tl.zeros_like(s)
        if MINIMUM:
            m = tl.load(low + group, mask=mask, other=0).to(tl.float32)
            if SCALE == 1:
                m = -m * tl.load(low_above + unit // 8, mask=mask, other=0).to(tl.float32)
    return value, s, m
