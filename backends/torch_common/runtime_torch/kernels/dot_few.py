"""One or two rows of x times rows of a weight, in float32: what counts is instructions per weight and bytes in flight.

A thread takes a piece of a row: 16 bytes of codes (32 elements of 4 bits, 16 of 8), of several rows at a time, so that
x is read once for all of them. The sum of a piece is taken before its scale is applied.
"""

import triton
import triton.language as tl

from runtime_torch.kernels.pieces import e2m1, load, merged, number, split_neighbours, split_words, sum_pieces


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
def _load_field(p, row, column, mask, ALL: tl.constexpr):
    """One by one: a load of several neighbours would bring them to other threads than their codes."""
    return load(p + tl.max_contiguous(row + column, [1, 1]), mask, ALL)


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
        highs = (high, high)
        if HI_BITS == 2:
            highs = tl.split(high)
        if PIECES > BU:
            # those of the next step are on their way while this one computes; the last step asks for its own again
            following = start + BU
            if WHOLE:
                following = tl.minimum(following, PIECES - BU)
            codes, high = _codes(lo, hi, row, num_left, following, UNITS, SHARE, WORDS, HI_BITS, EVEN, WHOLE, BN, BU)
        xs = _parts_of_x(x, start * (32 // SHARE), K, PARTS, 32 // SHARE // PARTS, BU)
        acc = _add_pieces(
            *(xs, words, highs, table, one, scale, above, low, low_above, row, units, mask, acc),
            *(UNITS, LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, WORDS, ALL, BN, BU),
        )
        if TOKENS == 2:
            xs = _parts_of_x(x + K, start * (32 // SHARE), K, PARTS, 32 // SHARE // PARTS, BU)
            second = _add_pieces(
                *(xs, words, highs, table, one, scale, above, low, low_above, row, units, mask, second),
                *(UNITS, LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, WORDS, ALL, BN, BU),
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
def _add_pieces(
    xs, words, highs, table, one, scale, above, low, low_above, row, units, mask, acc, UNITS: tl.constexpr,
    LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, WORDS: tl.constexpr, ALL: tl.constexpr,
    BN: tl.constexpr, BU: tl.constexpr,
):
    """acc [BN, BU] plus the products of the pieces; what two calls have in common the compiler computes once."""
    PARTS: tl.constexpr = 4 if LO_BITS == 8 else 32 // LO_BITS
    WIDTH: tl.constexpr = 4 if LO_BITS == 8 else LO_BITS
    for g in tl.static_range(GROUPS):
        dot = tl.zeros([BN, BU], dtype=tl.float32)
        total = tl.zeros([1, BU], dtype=tl.float32)
        for part in tl.static_range(g * PARTS // GROUPS, (g + 1) * PARTS // GROUPS):
            neighbours = split_words(xs[part], 1, BU, WIDTH)
            for i in tl.static_range(WIDTH):
                xk = neighbours[i]
                # a part has one field of each word, or the four bytes of one word
                if LO_BITS == 8:
                    v = _value(words[part], words[part], table, one, part, i, LO_BITS, 0, OFFSET, SCALE, CODEBOOK)
                else:
                    v = _value(
                        *(words[i], highs[i * HI_BITS // LO_BITS], table, one, i, part),
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
        v = e2m1(word, P)
    elif CODEBOOK:
        v = tl.load(table + ((word >> (P * LO_BITS)) & ((1 << LO_BITS) - 1)))
    elif HI_BITS == 0:
        v = number(word, word >> 12, one, P * LO_BITS, LO_BITS, 12, OFFSET)
    else:
        even, odd = merged(word, above, one, W * HI_BITS % LO_BITS, LO_BITS)
        if P % 2 == 0:
            v = number(even, even >> 8, one, P * LO_BITS, LO_BITS + HI_BITS, 8, OFFSET)
        else:
            v = number(odd, odd >> 8, one, (P - 1) * LO_BITS, LO_BITS + HI_BITS, 8, OFFSET)
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
    WHOLE: tl.constexpr = K % (BU * PIECE) == 0
    ALL: tl.constexpr = EVEN and WHOLE
    lo += first * (K // PER_WORD)
    scale += first * (K // 128)
    row = tl.arange(0, BN)[:, None]
    acc = tl.zeros([BN, BU], dtype=tl.float32)
    second = tl.zeros([BN, BU], dtype=tl.float32)
    for start in range(0, K, BU * PIECE):
        words = start // PER_WORD + tl.arange(0, BU * WORDS)[None, :]
        v = load(lo + (row * (K // PER_WORD) + words), (row < num_left) & (words < K // PER_WORD), ALL)
        if PER_WORD == 1:
            v = v.to(tl.float32)
        vs = split_neighbours(tl.reshape(v, [BN, BU, WORDS]), BN, BU, WORDS, 1)
        xs = _elements_of_x(x, start, K, BU, PIECE)
        if SCALE == 4:
            pieces = start // PIECE + tl.arange(0, BU)[None, :]
            at = row * (K // 128) + pieces // (128 // PIECE)
            s = load(scale + at, (row < num_left) & (pieces < K // PIECE), ALL)
            acc = tl.fma(s, _add_elements(vs, xs, tl.zeros([BN, BU], dtype=tl.float32), PER_WORD, PIECE, BN, BU), acc)
        else:
            acc = _add_elements(vs, xs, acc, PER_WORD, PIECE, BN, BU)
        if TOKENS == 2:
            xs = _elements_of_x(x + K, start, K, BU, PIECE)
            if SCALE == 4:
                dot = _add_elements(vs, xs, tl.zeros([BN, BU], dtype=tl.float32), PER_WORD, PIECE, BN, BU)
                second = tl.fma(s, dot, second)
            else:
                second = _add_elements(vs, xs, second, PER_WORD, PIECE, BN, BU)
    return acc, second


@triton.jit
def _elements_of_x(x, start, K: tl.constexpr, BU: tl.constexpr, PIECE: tl.constexpr):
    """x of each piece by elements: [1, BU] each, or [1, BU, 1]."""
    ALL: tl.constexpr = K % (BU * PIECE) == 0
    if PIECE == 8:
        # four neighbours a load, where their thread wants them; longer pieces would find their neighbours too far apart
        at = start + tl.arange(0, BU)[None, :, None] * 8 + tl.arange(0, 4)[None, None, :]
        a, b, c, d = split_words(load(x + at, at < K, ALL), 1, BU, 4)
        at += 4
        e, f, g, h = split_words(load(x + at, at < K, ALL), 1, BU, 4)
        made = (a, b, c, d, e, f, g, h)
    else:
        made = _parts_of_x(x, start, K, PIECE, 1, BU)
    return made


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


@triton.jit
def _parts_of_x(x, start, K: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr, BU: tl.constexpr):
    """x of BU pieces from column `start` on: [1, BU, WIDTH] for each of PARTS neighbours."""
    at = start + tl.arange(0, BU * PARTS * WIDTH)[None, :]
    xs = load(x + at, at < K, K % (BU * PARTS * WIDTH) == 0)
    return split_neighbours(tl.reshape(xs, [1, BU, PARTS * WIDTH]), 1, BU, PARTS, WIDTH)
