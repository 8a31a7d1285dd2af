"""Products with the weights of chosen experts, pair by pair: as `dot_few`, where every pair has a weight of its own."""

import triton
import triton.language as tl

from runtime_torch.kernels.dot_dense import add_elements
from runtime_torch.kernels.dot_few import add_pieces, dot_few, fields_of_scales, with_high_bits
from runtime_torch.kernels.elementwise import gated
from runtime_torch.kernels.pieces import load, parts_of_x, split_words, sum_pieces

NOT_GATED = -1


@triton.jit
def moe_few(
    x, expert_ids, shares, lo, hi, scale, above, low, low_above, table, bias, up_lo, up_hi, up_scale, up_above, up_low,
    up_low_above, up_bias, y, fault, num_rows, per_row, alpha, limit, K: tl.constexpr, LO_BITS: tl.constexpr,
    HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr, MINIMUM: tl.constexpr,
    CODEBOOK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SHARES: tl.constexpr, KIND: tl.constexpr, EVEN: tl.constexpr,
    BN: tl.constexpr, BU: tl.constexpr,
):
    """y[pair, n]: expert expert_ids[pair] on row pair // per_row of x float32, times the pair's share.

    Planes are [experts * num_rows, ...]. Where KIND is one of `gated`: that of this product and of the one with the
    planes `up_`.
    """
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    pair = tl.program_id(1)
    block = tl.program_id(0) * BN
    expert = tl.load(expert_ids + pair)
    first = expert.to(tl.int64) * num_rows + block
    n = block + tl.arange(0, BN)
    x += (pair // per_row).to(tl.int64) * K
    total, _ = dot_few(
        *(x, lo, hi, scale, above, low, low_above, table, first, num_rows - block, K, 1),
        *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, EVEN, BN, BU),
    )
    if HAS_BIAS:
        total += tl.load(bias + expert * num_rows + n, mask=n < num_rows, other=0.0)
    if KIND >= 0:
        up, _ = dot_few(
            *(x, up_lo, up_hi, up_scale, up_above, up_low, up_low_above, table, first, num_rows - block, K, 1),
            *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, EVEN, BN, BU),
        )
        if HAS_BIAS:
            up += tl.load(up_bias + expert * num_rows + n, mask=n < num_rows, other=0.0)
        total = gated(total, up, alpha, limit, KIND)
    if HAS_SHARES:
        total *= tl.load(shares + pair)
    tl.store(y + pair.to(tl.int64) * num_rows + n, total, mask=n < num_rows)


@triton.jit
def moe_few_sum(
    x, expert_ids, shares, lo, hi, scale, above, low, low_above, table, bias, y, fault, num_rows, K: tl.constexpr,
    TOP_K: tl.constexpr, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr,
    SCALE: tl.constexpr, MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr,
    BN: tl.constexpr, BU: tl.constexpr,
):
    """y[token, n]: the sum of the products of its pairs, each times its share; x float32 [T, TOP_K * K].

    Rows of the experts of a token, one after the other, are one row as long as x, whose pieces lie apart: nothing waits
    for one expert before it reads the next.
    """
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    token = tl.program_id(1)
    block = tl.program_id(0) * BN
    x += token.to(tl.int64) * (TOP_K * K)
    expert_ids += token * TOP_K
    shares += token * TOP_K
    acc = _sum_pairs(
        *(x, expert_ids, shares, lo, hi, scale, above, low, low_above, table, num_rows, block, K, TOP_K),
        *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, EVEN, BN, BU),
    )
    total = sum_pieces(acc, BN, BU)
    n = block + tl.arange(0, BN)
    if HAS_BIAS:
        for i in tl.static_range(TOP_K):
            at = tl.load(expert_ids + i) * num_rows + n
            total += tl.load(bias + at, mask=n < num_rows, other=0.0) * tl.load(shares + i)
    tl.store(y + token.to(tl.int64) * num_rows + n, total, mask=n < num_rows)


@triton.jit
def _pieces(
    expert_ids, start, num_rows, block, PER_ROW: tl.constexpr, TOP_K: tl.constexpr, WHOLE: tl.constexpr,
    BU: tl.constexpr,
):
    """Of the pieces from `start` on: the pair [1, BU], and which piece of the whole weight is that of row `block`."""
    pieces = start + tl.arange(0, BU)[None, :]
    pair = pieces // PER_ROW
    if not WHOLE:
        pair = tl.minimum(pair, TOP_K - 1)
    first = tl.load(expert_ids + pair).to(tl.int64) * num_rows + block
    return pair, first * PER_ROW + pieces % PER_ROW


@triton.jit
def _sum_pairs(
    x, expert_ids, shares, lo, hi, scale, above, low, low_above, table, num_rows, block, K: tl.constexpr,
    TOP_K: tl.constexpr, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr,
    SCALE: tl.constexpr, MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, EVEN: tl.constexpr, BN: tl.constexpr,
    BU: tl.constexpr,
):
    """[BN, BU]: sums of the pieces of all pairs; `lo` is int32, for SCALE 3 (dense) pairs of bf16."""
    WORDS: tl.constexpr = LO_BITS if LO_BITS < 8 else 4
    PIECE: tl.constexpr = 32 if LO_BITS < 8 else 8 if SCALE == 3 else 16
    SHARE: tl.constexpr = 32 // PIECE
    PARTS: tl.constexpr = 2 if SCALE == 3 else 4 if LO_BITS == 8 else 32 // WORDS
    PER_ROW: tl.constexpr = K // PIECE
    WHOLE: tl.constexpr = PER_ROW * TOP_K % BU == 0
    ALL: tl.constexpr = EVEN and WHOLE
    one = tl.where(num_rows < 0, 0, 0x4B000000)
    row = tl.arange(0, BN)[:, None]
    acc = tl.zeros([BN, BU], dtype=tl.float32)
    pair, at = _pieces(expert_ids, 0, num_rows, block, PER_ROW, TOP_K, WHOLE, BU)
    mask = (tl.arange(0, BU)[None, :] < PER_ROW * TOP_K) & (row < num_rows - block)
    codes, high = _codes(lo, hi, row, at, mask, PER_ROW, SHARE, WORDS, HI_BITS, ALL)
    for start in range(0, PER_ROW * TOP_K, BU):
        words = split_words(codes, BN, BU, WORDS)
        share = tl.load(shares + pair)
        if SCALE < 3:
            words = with_high_bits(words, high, one, LO_BITS, HI_BITS)
            scales = fields_of_scales(
                *(scale, above, low, low_above, row, at // SHARE, mask, K // 32, GROUPS, SCALE, MINIMUM, ALL)
            )
        if PER_ROW * TOP_K > BU:
            # the codes of the next step are on their way while this one computes
            following = start + BU
            if WHOLE:
                following = tl.minimum(following, PER_ROW * TOP_K - BU)
            pair, at = _pieces(expert_ids, following, num_rows, block, PER_ROW, TOP_K, WHOLE, BU)
            mask = (following + tl.arange(0, BU)[None, :] < PER_ROW * TOP_K) & (row < num_rows - block)
            codes, high = _codes(lo, hi, row, at, mask, PER_ROW, SHARE, WORDS, HI_BITS, ALL)
        dot = tl.zeros([BN, BU], dtype=tl.float32)
        xs = parts_of_x(x, start * PIECE, K * TOP_K, PARTS, PIECE // PARTS, BU)
        if SCALE == 3:
            dot = add_elements(words, xs, dot, 2, PIECE, BN, BU)
        else:
            dot = add_pieces(
                *(xs, words, scales, table, one, dot),
                *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, BN, BU),
            )
        acc = tl.fma(tl.broadcast_to(share, [BN, BU]), dot, acc)
    return acc


@triton.jit
def _codes(
    lo, hi, row, at, mask, PER_ROW: tl.constexpr, SHARE: tl.constexpr, WORDS: tl.constexpr, HI_BITS: tl.constexpr,
    ALL: tl.constexpr,
):
    """Words of pieces `at` [1, BU] and of those of the rows below: [BN, BU, WORDS], and their high bits."""
    w = tl.arange(0, WORDS)[None, None, :]
    codes = load(lo + (((row * PER_ROW + at) * WORDS)[:, :, None] + w), mask[:, :, None], ALL)
    high = codes
    unit = row * (PER_ROW // SHARE) + at // SHARE
    if HI_BITS == 1:
        high = load(hi + tl.max_contiguous(unit, [1, 1]), mask, ALL)
    elif HI_BITS == 2:
        high = load(hi + ((unit * 2)[:, :, None] + tl.arange(0, 2)[None, None, :]), mask[:, :, None], ALL)
    return codes, high
