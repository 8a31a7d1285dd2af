"""One or two rows of x times rows of a weight, in float32: what counts is instructions per weight and bytes in flight.

A thread takes a piece of a row: 16 bytes of codes (32 elements of 4 bits, 16 of 8), of BN / (threads / BU) rows at a
time, so that x is read once for all of them. The sum of a piece is taken before its scale is applied.

A code becomes a float where it lies: its bits are left in the mantissa of a number whose exponent makes bit b worth 1,
and 2 ** (23 - b) is subtracted, which is exact. With the product that is three instructions per weight.
"""

import triton
import triton.language as tl


@triton.jit
def _split4(v):
    """[..., 2, 2] to four [...], in order."""
    even, odd = tl.split(v)
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def _words(v, ROWS: tl.constexpr, PIECES: tl.constexpr, WORDS: tl.constexpr):
    """[ROWS, PIECES, WORDS] to WORDS tensors [ROWS, PIECES]."""
    if WORDS == 4:
        made = _split4(tl.reshape(v, [ROWS, PIECES, 2, 2]))
    else:
        made = tl.split(v)
    return made


@triton.jit
def _fields(v, ROWS: tl.constexpr, PIECES: tl.constexpr, WORDS: tl.constexpr, FIELDS: tl.constexpr):
    """[ROWS, PIECES, WORDS, FIELDS] to FIELDS tensors [ROWS, PIECES, WORDS]: whole pieces move to their threads at once."""
    if FIELDS == 4:
        made = _split4(tl.reshape(v, [ROWS, PIECES, WORDS, 2, 2]))
    else:
        even, odd = tl.split(tl.reshape(v, [ROWS, PIECES, WORDS, FIELDS // 2, 2]))
        if FIELDS == 8:
            a, c, e, g = _split4(tl.reshape(even, [ROWS, PIECES, WORDS, 2, 2]))
            b, d, f, h = _split4(tl.reshape(odd, [ROWS, PIECES, WORDS, 2, 2]))
            made = (a, b, c, d, e, f, g, h)
        else:
            a, c, e, g, i, k, m, o = _fields(even, ROWS, PIECES, WORDS, 8)
            b, d, f, h, j, q, n, p = _fields(odd, ROWS, PIECES, WORDS, 8)
            made = (a, b, c, d, e, f, g, h, i, j, k, q, m, n, o, p)
    return made


@triton.jit
def _parts_of_x(x, pieces, mask, LO_BITS: tl.constexpr, WORDS: tl.constexpr, ALL: tl.constexpr, BU: tl.constexpr):
    """x of each piece by fields: [1, BU, WORDS] each."""
    FIELDS: tl.constexpr = 32 // LO_BITS
    at = pieces[:, None] * (WORDS * FIELDS) + tl.arange(0, WORDS * FIELDS)[None, :]
    xs = _load(x + at, mask[:, None], ALL)
    if LO_BITS == 8:
        by_word = tl.reshape(xs, [1, BU, WORDS, FIELDS])
    else:
        by_word = tl.permute(tl.reshape(xs, [1, BU, FIELDS, WORDS]), (0, 1, 3, 2))
    return _fields(by_word, 1, BU, WORDS, FIELDS)


@triton.jit
def _number(word, upper, one, B: tl.constexpr, BITS: tl.constexpr, SHIFT: tl.constexpr, OFFSET: tl.constexpr):
    """The field of `word` from bit B on as a float, minus OFFSET; `upper` is the word shifted right by SHIFT.

    `one` is the exponent at which bit 0 is worth 1, in a register: an instruction has room for one constant. Eight
    bits are signed: flipping the highest adds 128.
    """
    FLIP: tl.constexpr = 128 if BITS == 8 else 0
    MASK: tl.constexpr = (1 << BITS) - 1
    if B + BITS <= 23:
        bits = (word & (MASK << B)) ^ (one + ((FLIP << B) - (B << 23)))
        v = bits.to(tl.float32, bitcast=True) - ((1 << (23 - B)) + OFFSET + FLIP)
    else:
        bits = (upper & (MASK << (B - SHIFT))) ^ (one + ((FLIP << (B - SHIFT)) - ((B - SHIFT) << 23)))
        v = bits.to(tl.float32, bitcast=True) - ((1 << (23 - B + SHIFT)) + OFFSET + FLIP)
    return v


@triton.jit
def _e2m1(word, P: tl.constexpr):
    """2 ** -14 times the e2m1 in field P: float16 has the same fields, further apart, down to subnormal numbers."""
    AT: tl.constexpr = 4 * (P % 4)
    if AT < 9:
        magnitude = word << (9 - AT)
    else:
        magnitude = word >> (AT - 9)
    pair = (magnitude & 0x0E000E00) | ((word << (12 - AT)) & -0x7FFF8000)
    if P >= 4:
        pair = pair >> 16
    return pair.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _merged(word, above, one, SHIFT: tl.constexpr, LO_BITS: tl.constexpr):
    """Every other field of `word` with its high bits beside it: the even ones, and the odd ones one field lower."""
    MASK: tl.constexpr = 0x0F0F0F0F if LO_BITS == 4 else 0x33333333
    mask = one + (MASK - 0x4B000000)
    above_even = above << (LO_BITS - SHIFT)
    above_odd = above >> SHIFT
    even = ((word ^ above_even) & mask) ^ above_even
    odd = (((word >> LO_BITS) ^ above_odd) & mask) ^ above_odd
    return even, odd


@triton.jit
def _halve(v, ROWS: tl.constexpr, PIECES: tl.constexpr):
    even, odd = tl.split(tl.reshape(v, [ROWS, PIECES // 2, 2]))
    return even + odd


@triton.jit
def sum_pieces(v, ROWS: tl.constexpr, PIECES: tl.constexpr):
    """[ROWS, PIECES] to [ROWS], neighbours first: the same order however the tile lies in threads.

    The first steps bring eight neighbours to one thread, through shared memory and at once; the rest is shuffled.
    """
    if PIECES >= 2:
        v = _halve(v, ROWS, PIECES)
    if PIECES >= 4:
        v = _halve(v, ROWS, PIECES // 2)
    if PIECES >= 8:
        v = _halve(v, ROWS, PIECES // 4)
    for level in tl.static_range(3, 20):
        if (PIECES >> level) > 1:
            v = tl.sum(tl.reshape(v, [ROWS, PIECES >> (level + 1), 2]), axis=2)
    return tl.reshape(v, [ROWS])


@triton.jit
def dot_few(
    x, lo, hi, scale, above, low, low_above, table, first, num_left, K: tl.constexpr, TOKENS: tl.constexpr,
    LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, EVEN: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):
    """Sums [BN] over K columns of row 0, and of row TOKENS - 1, of x float32 [TOKENS, K]: a pair, also for TOKENS = 1.

    The weight is rows first, first + 1 ... (int64) of its planes, of which num_left (int32) exist; EVEN says that this
    is BN or more. `lo` is int32 for blocks (8-bit codes included, four to a word), and of the type of the elements where
    SCALE is 3 (dense) or 4 (8-bit floats under a scale of 128). BU, a power of two, is how many pieces of a row one
    step takes: 32 elements of blocks of 2 or 4 bits, 16 of 8 bits; of the others as many as 16 bytes hold.
    """
    if SCALE >= 3:
        a, b = _dense(x, lo, scale, first, num_left, K, TOKENS, SCALE, EVEN, BN, BU)
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
def _load(p, mask, ALL: tl.constexpr):
    """What `mask` says, zero elsewhere; ALL is known to hold."""
    if ALL:
        v = tl.load(p)
    else:
        v = tl.load(p, mask=mask, other=0)
    return v


@triton.jit
def _load_field(p, row, column, mask, ALL: tl.constexpr):
    """One by one: a load of several neighbours would bring them to other threads than their codes."""
    return _load(p + tl.max_contiguous(row + column, [1, 1]), mask, ALL)


@triton.jit
def _scale(
    scale, above, row, units, mask, UNITS: tl.constexpr, G: tl.constexpr, GROUPS: tl.constexpr, KIND: tl.constexpr,
    ALL: tl.constexpr,
):
    """The scale of group G of each unit, or the minimum: [BN, BU]."""
    s = _load_field(scale, row * (UNITS * GROUPS), units * GROUPS + G, mask, ALL)
    if KIND == 2:
        e = s.to(tl.int32)
        # half of 2 ** (e - 127); below e = 2 a float32 is subnormal
        bits = tl.where(e < 2, 0x00200000 << tl.minimum(e, 1), (e - 1) << 23)
        s = bits.to(tl.float32, bitcast=True)
    else:
        s = s.to(tl.float32)
    if KIND == 1:
        s = s * _load_field(above, row * (UNITS // 8), units // 8, mask, ALL).to(tl.float32)
    return s


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
    for start in range(0, PIECES, BU):
        pieces = start + tl.arange(0, BU)
        exists = pieces < PIECES
        mask = tl.broadcast_to(exists[None, :], [BN, BU])
        if not EVEN:
            mask = mask & (row < num_left)
        at = (row * (PIECES * WORDS))[:, :, None] + (pieces * WORDS)[None, :, None] + tl.arange(0, WORDS)[None, None, :]
        words = _words(_load(lo + at, mask[:, :, None], ALL), BN, BU, WORDS)
        units = (pieces // SHARE)[None, :]
        highs = (words[0], words[0])
        if HI_BITS == 1:
            high = _load_field(hi, row * UNITS, units, mask, ALL)
            highs = (high, high)
        elif HI_BITS == 2:
            at = (row * (UNITS * 2))[:, :, None] + (units * 2)[:, :, None] + tl.arange(0, 2)[None, None, :]
            highs = tl.split(_load(hi + at, mask[:, :, None], ALL))
        xs = _parts_of_x(x, pieces, exists, LO_BITS, WORDS, WHOLE, BU)
        acc = _add_pieces(
            *(xs, words, highs, table, one, scale, above, low, low_above, row, units, mask, acc),
            *(UNITS, LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, WORDS, ALL, BN, BU),
        )
        if TOKENS == 2:
            xs = _parts_of_x(x + K, pieces, exists, LO_BITS, WORDS, WHOLE, BU)
            second = _add_pieces(
                *(xs, words, highs, table, one, scale, above, low, low_above, row, units, mask, second),
                *(UNITS, LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, WORDS, ALL, BN, BU),
            )
    return acc, second


@triton.jit
def _add_pieces(
    xs, words, highs, table, one, scale, above, low, low_above, row, units, mask, acc, UNITS: tl.constexpr,
    LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, WORDS: tl.constexpr, ALL: tl.constexpr,
    BN: tl.constexpr, BU: tl.constexpr,
):
    """acc [BN, BU] plus the products of the pieces; what two calls have in common the compiler computes once."""
    FIELDS: tl.constexpr = 32 // LO_BITS
    for g in tl.static_range(GROUPS):
        dot = tl.zeros([BN, BU], dtype=tl.float32)
        total = tl.zeros([1, BU], dtype=tl.float32)
        for p in tl.static_range(g * FIELDS // GROUPS, (g + 1) * FIELDS // GROUPS):
            parts = _words(xs[p], 1, BU, WORDS)
            for w in tl.static_range(WORDS):
                xk = parts[w]
                v = _value(
                    *(words[w], highs[w * HI_BITS // LO_BITS], table, one, w, p),
                    *(LO_BITS, HI_BITS, OFFSET, SCALE, CODEBOOK),
                )
                dot = tl.fma(v, tl.broadcast_to(xk, [BN, BU]), dot)
                if MINIMUM:
                    total += xk
        if SCALE == 2:
            dot = dot * 32768.0
        acc = tl.fma(_scale(scale, above, row, units, mask, UNITS, g, GROUPS, SCALE, ALL), dot, acc)
        if MINIMUM:
            m = _scale(low, low_above, row, units, mask, UNITS, g, GROUPS, SCALE, ALL)
            if SCALE == 1:
                total = -total
            acc = tl.fma(m, tl.broadcast_to(total, [BN, BU]), acc)
    return acc


@triton.jit
def _value(
    word, above, table, one, W: tl.constexpr, P: tl.constexpr, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr,
    OFFSET: tl.constexpr, SCALE: tl.constexpr, CODEBOOK: tl.constexpr,
):
    """Field P of word W as a float, with its high bits."""
    if SCALE == 2:
        v = _e2m1(word, P)
    elif CODEBOOK:
        v = tl.load(table + ((word >> (P * LO_BITS)) & ((1 << LO_BITS) - 1)))
    elif HI_BITS == 0:
        SHIFT: tl.constexpr = 16 if LO_BITS == 8 else 12
        v = _number(word, word >> SHIFT, one, P * LO_BITS, LO_BITS, SHIFT, OFFSET)
    else:
        even, odd = _merged(word, above, one, W * HI_BITS % LO_BITS, LO_BITS)
        if P % 2 == 0:
            v = _number(even, even >> 8, one, P * LO_BITS, LO_BITS + HI_BITS, 8, OFFSET)
        else:
            v = _number(odd, odd >> 8, one, (P - 1) * LO_BITS, LO_BITS + HI_BITS, 8, OFFSET)
    return v


@triton.jit
def _dense(
    x, lo, scale, first, num_left, K: tl.constexpr, TOKENS: tl.constexpr, SCALE: tl.constexpr, EVEN: tl.constexpr,
    BN: tl.constexpr, BU: tl.constexpr,
):
    """Elements as they are, or pairs of bf16 as int32."""
    PER_WORD: tl.constexpr = 2 if SCALE == 3 and lo.dtype.element_ty == tl.int32 else 1
    WORDS: tl.constexpr = 128 // lo.dtype.element_ty.primitive_bitwidth
    PIECE: tl.constexpr = WORDS * PER_WORD
    lo += first * (K // PER_WORD)
    scale += first * (K // 128)
    row = tl.arange(0, BN)[:, None]
    acc = tl.zeros([BN, BU], dtype=tl.float32)
    second = tl.zeros([BN, BU], dtype=tl.float32)
    for start in range(0, K, BU * PIECE):
        words = start // PER_WORD + tl.arange(0, BU * WORDS)[None, :]
        columns = start + tl.arange(0, BU * PIECE)[None, :]
        v = _load(lo + (row * (K // PER_WORD) + words), (row < num_left) & (words < K // PER_WORD), EVEN and K % (BU * PIECE) == 0)
        if PER_WORD == 1:
            v = v.to(tl.float32)
        vs = _fields(tl.reshape(v, [BN, BU, 1, WORDS]), BN, BU, 1, WORDS)
        xs = _load(x + columns, columns < K, K % (BU * PIECE) == 0)
        xs = _fields(tl.reshape(xs, [1, BU, 1, PIECE]), 1, BU, 1, PIECE)
        if SCALE == 4:
            pieces = start // PIECE + tl.arange(0, BU)[None, :]
            at = row * (K // 128) + pieces // (128 // PIECE)
            s = _load(scale + at, (row < num_left) & (pieces < K // PIECE), EVEN and K % (BU * PIECE) == 0)
            acc = tl.fma(s, _add_elements(vs, xs, tl.zeros([BN, BU], dtype=tl.float32), PER_WORD, PIECE, BN, BU), acc)
        else:
            acc = _add_elements(vs, xs, acc, PER_WORD, PIECE, BN, BU)
        if TOKENS == 2:
            xs = _load(x + K + columns, columns < K, K % (BU * PIECE) == 0)
            xs = _fields(tl.reshape(xs, [1, BU, 1, PIECE]), 1, BU, 1, PIECE)
            if SCALE == 4:
                dot = _add_elements(vs, xs, tl.zeros([BN, BU], dtype=tl.float32), PER_WORD, PIECE, BN, BU)
                second = tl.fma(s, dot, second)
            else:
                second = _add_elements(vs, xs, second, PER_WORD, PIECE, BN, BU)
    return acc, second


@triton.jit
def _add_elements(vs, xs, acc, PER_WORD: tl.constexpr, PIECE: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr):
    """acc [BN, BU] plus the products of pieces."""
    for i in tl.static_range(PIECE):
        v = tl.reshape(vs[i // PER_WORD], [BN, BU])
        if PER_WORD == 2:
            # the upper half of a float32 is a bf16
            if i % 2 == 0:
                v = (v << 16).to(tl.float32, bitcast=True)
            else:
                v = (v & -65536).to(tl.float32, bitcast=True)
        acc = tl.fma(v, tl.broadcast_to(tl.reshape(xs[i], [1, BU]), [BN, BU]), acc)
    return acc
