"""Registers of a thread that holds whole pieces of rows: taken apart, turned from codes into floats, and summed.

A code becomes a float where it lies: its bits are left in the mantissa of a number whose exponent makes bit b worth 1,
and 2 ** (23 - b) is subtracted, which is exact. With the product that is three instructions per weight.
"""

import triton
import triton.language as tl


@triton.jit
def load(p, mask, ALL: tl.constexpr):
    """What `mask` says, zero elsewhere; ALL is known to hold."""
    if ALL:
        v = tl.load(p)
    elif p.dtype.element_ty.is_floating():
        v = tl.load(p, mask=mask, other=0.0)
    else:
        v = tl.load(p, mask=mask, other=0)
    return v


@triton.jit
def _split4(v):
    """[..., 2, 2] to four [...], in order."""
    even, odd = tl.split(v)
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def split_words(v, ROWS: tl.constexpr, PIECES: tl.constexpr, WORDS: tl.constexpr):
    """[ROWS, PIECES, WORDS] to WORDS tensors [ROWS, PIECES]."""
    if WORDS == 4:
        made = _split4(tl.reshape(v, [ROWS, PIECES, 2, 2]))
    else:
        made = tl.split(v)
    return made


@triton.jit
def _split_high(v, ROWS: tl.constexpr, PIECES: tl.constexpr, SIZE: tl.constexpr):
    """[ROWS, PIECES, SIZE] to its first and its second half."""
    return tl.split(tl.permute(tl.reshape(v, [ROWS, PIECES, 2, SIZE // 2]), (0, 1, 3, 2)))


@triton.jit
def _split_in_4(v, ROWS: tl.constexpr, PIECES: tl.constexpr, SIZE: tl.constexpr):
    first, second = _split_high(v, ROWS, PIECES, SIZE)
    a, b = _split_high(first, ROWS, PIECES, SIZE // 2)
    c, d = _split_high(second, ROWS, PIECES, SIZE // 2)
    return a, b, c, d


@triton.jit
def split_neighbours(v, ROWS: tl.constexpr, PIECES: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """[ROWS, PIECES, PARTS * WIDTH] to PARTS tensors [ROWS, PIECES, WIDTH].

    Halves first: then the whole tile moves to the threads of its pieces at once.
    """
    if PARTS == 4:
        made = _split_in_4(v, ROWS, PIECES, 4 * WIDTH)
    else:
        first, second = _split_high(v, ROWS, PIECES, PARTS * WIDTH)
        if PARTS == 8:
            a, b, c, d = _split_in_4(first, ROWS, PIECES, 4 * WIDTH)
            e, f, g, h = _split_in_4(second, ROWS, PIECES, 4 * WIDTH)
            made = (a, b, c, d, e, f, g, h)
        else:
            a, b, c, d, e, f, g, h = split_neighbours(first, ROWS, PIECES, 8, WIDTH)
            i, j, k, m, n, o, p, q = split_neighbours(second, ROWS, PIECES, 8, WIDTH)
            made = (a, b, c, d, e, f, g, h, i, j, k, m, n, o, p, q)
    return made


@triton.jit
def number(word, upper, one, B: tl.constexpr, BITS: tl.constexpr, SHIFT: tl.constexpr, OFFSET: tl.constexpr):
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
def e2m1(word, P: tl.constexpr):
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
def merged(word, above, one, SHIFT: tl.constexpr, LO_BITS: tl.constexpr):
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
def parts_of_x(x, start, K: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr, BU: tl.constexpr):
    """x of BU pieces from column `start` on: [1, BU, WIDTH] for each of PARTS neighbours.

    They are loaded side by side and brought to their threads through shared memory, which is also where compilers stop
    to put off loads until their values are needed: those before it are on their way together. Pieces of 4 and 8 lie
    near enough to one another for each thread to load its own, by fours.
    """
    if PARTS * WIDTH >= 16:
        at = start + tl.arange(0, BU * PARTS * WIDTH)[None, :]
        xs = load(x + at, at < K, K % (BU * PARTS * WIDTH) == 0)
        made = split_neighbours(tl.reshape(xs, [1, BU, PARTS * WIDTH]), 1, BU, PARTS, WIDTH)
    else:
        ALL: tl.constexpr = K % (BU * PARTS * 4) == 0
        at = start + tl.arange(0, BU)[None, :, None] * (PARTS * 4) + tl.arange(0, 4)[None, None, :]
        a = load(x + at, at < K, ALL)
        b = a
        if PARTS == 2:
            b = load(x + (at + 4), at + 4 < K, ALL)
        made = (a, b)
    return made
