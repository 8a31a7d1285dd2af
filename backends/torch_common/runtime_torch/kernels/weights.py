"""Weights out of planes (see `runtime_torch.planes`) as tensor cores take them: one step from bits to a weight.

`decode` in `blocks` gives codes and scales apart, for sums that scale a whole group at once.
"""

import triton
import triton.language as tl


@triton.jit
def above_scales(above, low_above, rows, units, mask, num_units, SCALE: tl.constexpr, MINIMUM: tl.constexpr):
    """Scales of the scales and minima of 256 elements, f16 [N, U]; whatever is at hand where the format has none.

    They are too small for asynchronous copies, so whoever loops reads them one step ahead.
    """
    a = mask
    b = mask
    if SCALE == 1:
        at = rows.to(tl.int64)[:, None] * (num_units // 8) + (units // 8)[None, :]
        a = tl.load(above + at, mask=mask, other=0.0)
        if MINIMUM:
            b = tl.load(low_above + at, mask=mask, other=0.0)
    return a, b


@triton.jit
def _groups(plane, unit, mask, GROUPS: tl.constexpr):
    """The one or two entries of every unit, [N, U] each; two are read at once."""
    if GROUPS == 1:
        first = tl.load(plane + unit, mask=mask, other=0)
        second = first
    else:
        both = tl.load(plane + unit[:, :, None] * 2 + tl.arange(0, 2)[None, None, :], mask=mask[:, :, None], other=0)
        first, second = tl.split(both)
    return first, second


@triton.jit
def _times(v, a, factor, SCALE: tl.constexpr, HAS_FACTOR: tl.constexpr):
    v = v.to(tl.float32)
    if SCALE == 1:
        v *= a.to(tl.float32)
    if HAS_FACTOR:
        v *= factor[:, None]
    return v


@triton.jit
def scales(
    scale, low, a, b, factor, unit, mask, GROUPS: tl.constexpr, SCALE: tl.constexpr, MINIMUM: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
):
    """Scales of the first and last group of units and their minima, float32 [N, U], times the factors of the rows."""
    if SCALE == 3:
        s = tl.full(mask.shape, 1.0, dtype=tl.float32)
        s_last = s
    elif SCALE == 4:
        s = tl.load(scale + unit // 4, mask=mask, other=0.0)
        s_last = s
    elif SCALE == 2:
        e = tl.load(scale + unit, mask=mask, other=0).to(tl.int32)
        # half of 2 ** (e - 127); below e = 2 a float32 is subnormal
        s = tl.where(e < 2, 0x00200000 << tl.minimum(e, 1), (e - 1) << 23).to(tl.float32, bitcast=True)
        s_last = s
    else:
        s, s_last = _groups(scale, unit, mask, GROUPS)
    s = _times(s, a, factor, SCALE, HAS_FACTOR)
    s_last = _times(s_last, a, factor, SCALE, HAS_FACTOR)
    m = tl.zeros_like(s)
    m_last = m
    if MINIMUM:
        m, m_last = _groups(low, unit, mask, GROUPS)
        m = _times(m, b, factor, SCALE, HAS_FACTOR)
        m_last = _times(m_last, b, factor, SCALE, HAS_FACTOR)
        if SCALE == 1:
            m = -m
            m_last = -m_last
    return s, s_last, m, m_last


@triton.jit
def codes(
    lo, hi, rows, units, unit, mask, num_columns, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, SCALE: tl.constexpr,
    W: tl.constexpr,
):
    """Words of units [N, U, W], of all their parts, and where there are high bits, those; dense weights are words."""
    j = tl.arange(0, W)
    if SCALE == 3:
        column = (units * 32)[:, None] + j[None, :]
        at = rows.to(tl.int64)[:, None, None] * num_columns + column[None, :, :]
        word = tl.load(lo + at, mask=mask[:, :, None] & (column < num_columns)[None, :, :], other=0.0)
    elif SCALE == 4:
        word = tl.load(lo + unit[:, :, None] * W + j[None, None, :], mask=mask[:, :, None], other=0.0)
    else:
        word = tl.load(lo + unit[:, :, None] * W + j[None, None, :], mask=mask[:, :, None], other=0)
    high = word
    if HI_BITS == 1:
        high = tl.load(hi + unit, mask=mask, other=0)[:, :, None]
    elif HI_BITS == 2:
        high = tl.load(hi + unit[:, :, None] * 2 + (j // 2)[None, None, :], mask=mask[:, :, None], other=0)
    if HI_BITS > 0:
        high = high >> (j * HI_BITS % LO_BITS)[None, None, :]
    return word, high


@triton.jit
def _shifted(word, LEFT: tl.constexpr):
    return word << LEFT if LEFT >= 0 else word >> -LEFT


@triton.jit
def _fields(
    word, high, s, m, PART: tl.constexpr, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Field PART of words [N, U, W] of codes.

    All fields of a byte are used where one shift brings them, the last at the top of a mantissa; under 1.0 that is a
    number, and one multiplication and addition makes it the weight. A conversion of integers would take as long as all
    of this. 1.0 comes before the mask, as an instruction takes one constant and moves a second to a register.

    The sum that takes 1.0 away again is up to 2^10 times larger than the weight: an error of 2^-14, which operands in
    halves do not see. EXACT takes it away first.
    """
    ONE: tl.constexpr = 0x3F800000
    FIELDS: tl.constexpr = 8 // LO_BITS
    FIRST: tl.constexpr = 15 - HI_BITS
    LEFT: tl.constexpr = FIRST - 8 * (PART // FIELDS)
    AT: tl.constexpr = FIRST + LO_BITS * (PART % FIELDS)
    bits = (_shifted(word, LEFT) | ONE) & (ONE | (((1 << LO_BITS) - 1) << AT))
    if HI_BITS > 0:
        bits |= _shifted(high, LEFT + LO_BITS) & (((1 << HI_BITS) - 1) << (AT + LO_BITS))
    STEP: tl.constexpr = 1 << (23 - AT)
    value = bits.to(tl.float32, bitcast=True)
    if EXACT:
        return (value - (1.0 + OFFSET / STEP)) * (s * STEP)[:, :, None] + m[:, :, None]
    low = m - s * (OFFSET + STEP)
    return value * (s * STEP)[:, :, None] + low[:, :, None]


@triton.jit
def weights(
    word, high, table, s, s_last, m, m_last, PART: tl.constexpr, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr,
    OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr, CODEBOOK: tl.constexpr, W: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Part PART of units, float32 [N, U, W]; EXACT where they are no operands in halves."""
    if PART * GROUPS // (32 // W) > 0:
        s = s_last
        m = m_last
    if SCALE == 3:
        w = word.to(tl.float32)
    elif SCALE == 4:
        w = word.to(tl.float32) * s[:, :, None]
    elif LO_BITS == 8:
        w = word.to(tl.float32) * s[:, :, None] + m[:, :, None]
    elif CODEBOOK:
        w = tl.load(table + ((word >> (PART * LO_BITS)) & ((1 << LO_BITS) - 1))) * s[:, :, None] + m[:, :, None]
    else:
        w = _fields(word, high, s, m, PART, LO_BITS, HI_BITS, OFFSET, EXACT)
    return w
