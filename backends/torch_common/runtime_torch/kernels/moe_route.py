"""Choosing experts for each row, and grouping the chosen ones: counting instead of sorting."""

import triton
import triton.language as tl

from runtime_torch.kernels.functions import sigmoid

SOFTMAX, SIGMOID, SOFTMAX_SELECTED = 0, 1, 2


@triton.jit
def _softmax(x):
    """Rows of [N, M]; a row with NaN, with +inf, or of nothing but -inf is NaN."""
    e = tl.exp(x - tl.max(x, axis=1)[:, None])
    return e / tl.sum(e, axis=1)[:, None]


@triton.jit
def _rank(x):
    """int32 in the order of float32: NaN below -inf, both zeros alike; the smallest int32 stands for nothing."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    ordered = tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return tl.where(x == x, ordered, -0x7FFFFFFF)


@triton.jit(do_not_specialize=["num_tokens"])
def moe_route(
    logits, bias, expert_ids, weights, num_tokens, num_experts, factor, TOP_K: tl.constexpr, SCORE: tl.constexpr,
    NORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr, BR: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr,
):
    """The TOP_K experts of BR rows, one after the other: the most preferred first, the lower id among equals.

    Comparisons are those of integers: one instruction reduces them over a warp where the chip has such.
    """
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    expert = tl.arange(0, BLOCK)[None, :]
    at = row.to(tl.int64)[:, None] * num_experts + expert
    is_row = (row < num_tokens)[:, None]
    score = tl.load(logits + at, mask=is_row & (expert < num_experts), other=0.0)
    if SCORE == 0:
        score = _softmax(tl.where(expert < num_experts, score, float("-inf")))
    elif SCORE == 1:
        score = sigmoid(score)
    preference = score
    if HAS_BIAS:
        preference += tl.load(bias + expert, mask=expert < num_experts, other=0.0)
    rank = tl.where(expert < num_experts, _rank(preference), -0x80000000)
    bits = score.to(tl.int32, bitcast=True)
    place = tl.arange(0, BK)[None, :]
    ids = tl.zeros([BR, BK], dtype=tl.int32)
    chosen_bits = tl.zeros([BR, BK], dtype=tl.int32)
    for i in range(TOP_K):
        best = tl.max(rank, axis=1)
        chosen = tl.min(tl.where(rank == best[:, None], expert, BLOCK), axis=1)
        is_chosen = expert == chosen[:, None]
        ids = tl.where(place == i, chosen[:, None], ids)
        chosen_bits = tl.where(place == i, tl.sum(tl.where(is_chosen, bits, 0), axis=1)[:, None], chosen_bits)
        rank = tl.where(is_chosen, -0x80000000, rank)
    weight = chosen_bits.to(tl.float32, bitcast=True)
    if SCORE == 2:
        weight = _softmax(tl.where(place < TOP_K, weight, float("-inf")))
    elif NORMALIZE:
        weight = weight / (tl.sum(tl.where(place < TOP_K, weight, 0.0), axis=1) + 1e-20)[:, None]
    out = row.to(tl.int64)[:, None] * TOP_K + place
    is_inside = is_row & (place < TOP_K)
    tl.store(expert_ids + out, ids, mask=is_inside)
    tl.store(weights + out, weight * factor, mask=is_inside)


@triton.jit(do_not_specialize=["num_pairs"])
def group_pairs(expert_ids, order, borders, num_pairs, num_experts, BE: tl.constexpr, BLOCK: tl.constexpr):
    """order[borders[e] : borders[e + 1]] are the pairs of expert e, lowest first; pairs of no expert are left out.

    A program counts for BE experts what comes before them, and then where each of their pairs goes.
    """
    expert = tl.program_id(0) * BE + tl.arange(0, BE)
    at = tl.arange(0, BLOCK)
    before = tl.zeros([BE, BLOCK], dtype=tl.int32)
    for first in range(0, num_pairs, BLOCK):
        ids = tl.load(expert_ids + first + at, mask=first + at < num_pairs, other=0x7FFFFFFF)
        before += ((ids[None, :] >= 0) & (ids[None, :] < expert[:, None])).to(tl.int32)
    start = tl.sum(before, axis=1)
    tl.store(borders + expert, start, mask=expert <= num_experts)
    for first in range(0, num_pairs, BLOCK):
        ids = tl.load(expert_ids + first + at, mask=first + at < num_pairs, other=0x7FFFFFFF)
        is_mine = (ids[None, :] == expert[:, None]) & (expert < num_experts)[:, None]
        count = tl.cumsum(is_mine.to(tl.int32), axis=1)
        pair = tl.zeros_like(count) + (first + at)[None, :]
        tl.store(order + start[:, None] + count - 1, pair, mask=is_mine)
        start += tl.sum(is_mine.to(tl.int32), axis=1)
