"""One or two rows of x times rows of a weight, in float32: what counts is instructions per weight and bytes in flight.

A thread takes a piece of a row: 16 bytes of codes (32 elements of 4 bits, 16 of 8), of several rows at a time, so that
x is read once for all of them. The sum of a piece is taken before its scale is applied.
"""

import triton
import triton.language as tl

from runtime_torch.kernels.dot_dense import dot_dense
from runtime_torch.kernels.pieces import e2m1, load, merged, number, parts_of_x, split_words, sum_pieces


@triton.jit
def dot_few(
    x, lo, hi, scale, above, low, low_above, table, first, num_left, K: tl.constexpr, TOKENS: tl.constexpr,
    LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, EVEN: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):
    """Sums [BN] over K columns of row 0, and of row TOKENS - 1, of x float32 [TOKENS, K]: a pair, also for TOKENS = 1.

    The weight is rows first, first + 1 ... (int64) of its planes, of which num_left (int32) exist; EVEN says that this
    is BN or more. `lo` is int32 for blocks (8-bit codes included, four to a word) and for pairs of bf16; else of the
    type of the elements, where SCALE is 3 (dense) or 4 (8-bit floats under a scale of 128). BU, a power of two, is how
    many pieces of a row one step takes: 32 elements of 2 or 4 bits, 16 codes of 8; of floats as many as 16 bytes hold.
    The sum depends on BU, but not on what else the launch computes. See `products_few` for sizes and pointers.
    """
    if SCALE >= 3:
        a, b = dot_dense(x, lo, scale, first, num_left, K, TOKENS, SCALE, EVEN, BN, BU)
    else:
        a, b = _blocks(
            *(x, lo, hi, scale, above, low, low_above, table, first, num_left, K, TOKENS),
            *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, EVEN, BN, BU),
        )
    total = sum_pieces(a, BN, BU)
    if TOKENS == 2:
        return total, sum_pieces(b, BN, BU)
    return total, total


@triton.jit
def _load_field(p, row, column, mask, ALL: tl.constexpr):
    """One by one: a load of several neighbours would bring them to other threads than their codes."""
    return load(p + tl.max_contiguous(row + column, [1, 1]), mask, ALL)


@triton.jit
def fields_of_scales(
    scale, above, low, low_above, row, units, mask, UNITS: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, ALL: tl.constexpr,
):
    """Scales of the first and the last group, those above them, and the same of minima; as stored, [BN, BU] each.

    They are asked for with the codes and converted when they are needed: memory is waited for once.
    """
    per_group = row * (UNITS * GROUPS)
    s = _load_field(scale, per_group, units * GROUPS, mask, ALL)
    s_last = s
    s_above = s
    if GROUPS == 2:
        s_last = _load_field(scale, per_group, units * 2 + 1, mask, ALL)
    if SCALE == 1:
        s_above = _load_field(above, row * (UNITS // 8), units // 8, mask, ALL)
    m = s
    m_last = s
    m_above = s
    if MINIMUM:
        m = _load_field(low, per_group, units * GROUPS, mask, ALL)
        m_last = m
        m_above = m
        if GROUPS == 2:
            m_last = _load_field(low, per_group, units * 2 + 1, mask, ALL)
        if SCALE == 1:
            m_above = _load_field(low_above, row * (UNITS // 8), units // 8, mask, ALL)
    return s, s_last, s_above, m, m_last, m_above


@triton.jit
def _scale(field, above, KIND: tl.constexpr):
    """A scale or a minimum as float32."""
    if KIND == 2:
        e = field.to(tl.int32)
        # half of 2 ** (e - 127); below e = 2 a float32 is subnormal
        s = tl.where(e < 2, 0x00200000 << tl.minimum(e, 1), (e - 1) << 23).to(tl.float32, bitcast=True)
    else:
        s = field.to(tl.float32)
    if KIND == 1:
        s = s * above.to(tl.float32)
    return s


@triton.jit
def with_high_bits(words, high, one, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr):
    """The words; where there are high bits, the even and the odd fields of each word."""
    made = words
    if HI_BITS > 0:
        highs = (high, high)
        if HI_BITS == 2:
            highs = tl.split(high)
        a, b = merged(words[0], highs[0], one, 0, LO_BITS)
        c, d = merged(words[1], highs[0], one, HI_BITS % LO_BITS, LO_BITS)
        made = (a, b, c, d)
        if LO_BITS == 4:
            e, f = merged(words[2], highs[HI_BITS // 2], one, 2 * HI_BITS % LO_BITS, LO_BITS)
            g, h = merged(words[3], highs[HI_BITS // 2], one, 3 * HI_BITS % LO_BITS, LO_BITS)
            made = (a, b, c, d, e, f, g, h)
    return made


@triton.jit
def _blocks(
    x, lo, hi, scale, above, low, low_above, table, first, num_left, K: tl.constexpr, TOKENS: tl.constexpr,
    LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, EVEN: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):
    UNITS: tl.constexpr = K // 32
    SHARE: tl.constexpr = 2 if LO_BITS == 8 else 1
    PIECES: tl.constexpr = UNITS * SHARE
    WORDS: tl.constexpr = 4 if LO_BITS == 8 else LO_BITS
    PARTS: tl.constexpr = 4 if LO_BITS == 8 else 32 // WORDS
    WHOLE: tl.constexpr = PIECES % BU == 0
    ALL: tl.constexpr = EVEN and WHOLE
    lo += first * (PIECES * WORDS)
    hi += first * (UNITS * HI_BITS)
    scale += first * (UNITS * GROUPS)
    low += first * (UNITS * GROUPS)
    above += first * (UNITS // 8)
    low_above += first * (UNITS // 8)
    one = tl.where(num_left < 0, 0, 0x4B000000)
    row = tl.arange(0, BN)[:, None]
    acc = tl.zeros([BN, BU], dtype=tl.float32)
    second = tl.zeros([BN, BU], dtype=tl.float32)
    codes, high = _codes(lo, hi, row, num_left, 0, UNITS, SHARE, WORDS, HI_BITS, EVEN, WHOLE, BN, BU)
    for start in range(0, PIECES, BU):
        pieces = start + tl.arange(0, BU)
        units = (pieces // SHARE)[None, :]
        mask = (pieces < PIECES)[None, :] & (row < num_left)
        words = split_words(codes, BN, BU, WORDS)
        words = with_high_bits(words, high, one, LO_BITS, HI_BITS)
        scales = fields_of_scales(
            scale, above, low, low_above, row, units, mask, UNITS, GROUPS, SCALE, MINIMUM, ALL
        )
        if PIECES > BU:
            # those of the next step are on their way while this one computes; the last step asks for its own again
            following = start + BU
            if WHOLE:
                following = tl.minimum(following, PIECES - BU)
            codes, high = _codes(lo, hi, row, num_left, following, UNITS, SHARE, WORDS, HI_BITS, EVEN, WHOLE, BN, BU)
        xs = parts_of_x(x, start * (32 // SHARE), K, PARTS, 32 // SHARE // PARTS, BU)
        acc = add_pieces(
            *(xs, words, scales, table, one, acc),
            *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, BN, BU),
        )
        if TOKENS == 2:
            xs = parts_of_x(x + K, start * (32 // SHARE), K, PARTS, 32 // SHARE // PARTS, BU)
            second = add_pieces(
                *(xs, words, scales, table, one, second),
                *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, BN, BU),
            )
    return acc, second


@triton.jit
def _codes(
    lo, hi, row, num_left, start, UNITS: tl.constexpr, SHARE: tl.constexpr, WORDS: tl.constexpr,
    HI_BITS: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):
    """Words of the pieces from `start` on: [BN, BU, WORDS], and those of high bits: [BN, BU, 2] or [BN, BU]."""
    PIECES: tl.constexpr = UNITS * SHARE
    ALL: tl.constexpr = EVEN and WHOLE
    pieces = start + tl.arange(0, BU)[None, :]
    mask = pieces < PIECES
    if not EVEN:
        mask = mask & (row < num_left)
    w = tl.arange(0, WORDS)[None, None, :]
    codes = load(lo + ((row * (PIECES * WORDS) + pieces * WORDS)[:, :, None] + w), mask[:, :, None], ALL)
    high = codes
    if HI_BITS == 1:
        high = _load_field(hi, row * UNITS, pieces, mask, ALL)
    elif HI_BITS == 2:
        at = (row * (UNITS * 2) + pieces * 2)[:, :, None] + tl.arange(0, 2)[None, None, :]
        high = load(hi + at, mask[:, :, None], ALL)
    return codes, high


@triton.jit
def add_pieces(
    xs, words, scales, table, one, acc, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr,
    GROUPS: tl.constexpr, SCALE: tl.constexpr, MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, BN: tl.constexpr,
    BU: tl.constexpr,
):
    """acc [BN, BU] plus the products of the pieces; what two calls have in common the compiler computes once.

    Under a minimum, codes count from the middle of their range and the minimum is the weight there: the two sums that
    make up the product are then no larger than it has to be.
    """
    MIDDLE: tl.constexpr = 1 << (LO_BITS + HI_BITS - 1) if MINIMUM else OFFSET
    PARTS: tl.constexpr = 4 if LO_BITS == 8 else 32 // LO_BITS
    WIDTH: tl.constexpr = 4 if LO_BITS == 8 else LO_BITS
    for g in tl.static_range(GROUPS):
        dot = tl.zeros([BN, BU], dtype=tl.float32)
        total = tl.zeros([1, BU], dtype=tl.float32)
        for part in tl.static_range(g * PARTS // GROUPS, (g + 1) * PARTS // GROUPS):
            neighbours = split_words(xs[part], 1, BU, WIDTH)
            for i in tl.static_range(WIDTH):
                # a part has one field of each word, or the four bytes of one word
                if LO_BITS == 8:
                    v = _value(words[part], table, one, i, LO_BITS, HI_BITS, MIDDLE, SCALE, CODEBOOK)
                elif HI_BITS == 0:
                    v = _value(words[i], table, one, part, LO_BITS, HI_BITS, MIDDLE, SCALE, CODEBOOK)
                else:
                    v = _value(words[2 * i + part % 2], table, one, part, LO_BITS, HI_BITS, MIDDLE, SCALE, CODEBOOK)
                dot = tl.fma(v, tl.broadcast_to(neighbours[i], [BN, BU]), dot)
                if MINIMUM:
                    total += neighbours[i]
        if SCALE == 2:
            dot = dot * 32768.0
        s = _scale(scales[g], scales[2], SCALE)
        acc = tl.fma(s, dot, acc)
        if MINIMUM:
            m = _scale(scales[3 + g], scales[5], SCALE)
            if SCALE == 1:
                m = -m
            m = tl.fma(s, tl.full([BN, BU], MIDDLE, dtype=tl.float32), m)
            acc = tl.fma(m, tl.broadcast_to(total, [BN, BU]), acc)
    return acc


@triton.jit
def _value(
    word, table, one, P: tl.constexpr, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr,
    SCALE: tl.constexpr, CODEBOOK: tl.constexpr,
):
    """Field P of a word as a float."""
    if SCALE == 2:
        v = e2m1(word, P)
    elif CODEBOOK:
        v = tl.load(table + ((word >> (P * LO_BITS)) & ((1 << LO_BITS) - 1)))
    elif HI_BITS == 0:
        v = number(word, word >> 12, one, P * LO_BITS, LO_BITS, 12, OFFSET)
    else:
        v = number(word, word >> 8, one, P // 2 * 2 * LO_BITS, LO_BITS + HI_BITS, 8, OFFSET)
    return v
