"""The last kernel of sampling: exact filters over a list of candidates or a whole row, and the draw."""

import triton
import triton.language as tl

from runtime_torch.kernels.sampling import (
    _any,
    _depth,
    _filters,
    _has_typical_alone,
    _ordered,
    _rows,
    _share,
    _weight,
)


@triton.jit
def _look(source, kept, start, UNIT: tl.constexpr, SURVEYED: tl.constexpr, CANDIDATES: tl.constexpr, BC: tl.constexpr):
    """BC tokens of each row from place `start` [BR] on: order of logits, id, depth, weight (0: filtered, or no token).

    source  logits, values and ids of the lists, rows, ends, which rows have lists, vocabulary
    kept    top, rate; survivors: logits from `border` on (equal ones up to id `cut`), weights from `least` on,
            distances from `centre` up to `reach` (as bits)
    """
    logits, values, ids, rows, ends, is_listed, vocab = source
    top, rate, border, cut, least, centre, reach = kept
    at = start[:, None] + tl.arange(0, BC)[None, :]
    inside = at < ends[:, None]
    row = rows.to(tl.int64)[:, None]
    v = tl.load(logits + row * vocab + at, mask=inside & (is_listed[:, None] == 0), other=float("-inf"))
    token = at
    if SURVEYED:
        from_list = inside & is_listed[:, None]
        v = tl.where(from_list, tl.load(values + row * CANDIDATES + at, mask=from_list, other=0.0), v)
        token = tl.where(from_list, tl.load(ids + row * CANDIDATES + at, mask=from_list, other=0), token)
    x = _depth(v, top[:, None], rate[:, None])
    w = _weight(x)
    key = _ordered(v)
    survives = (key > border[:, None]) | ((key == border[:, None]) & (token <= cut[:, None]))
    survives = survives & (w >= least[:, None]) & (_distance(x, centre) <= reach[:, None])
    return key, token, x, tl.where(survives, (w * UNIT).to(tl.int64), 0)


@triton.jit
def _distance(x, centre):
    return tl.abs(x - centre[:, None]).to(tl.int32, bitcast=True)


@triton.jit
def _sums(
    source, kept, least, longest, KIND: tl.constexpr, UNIT: tl.constexpr, SURVEYED: tl.constexpr,
    CANDIDATES: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """Over survivors: tokens (KIND 0) or weight with an order of `least` and more, that least order, the next below.

    The order is that of logits; for KIND 2 nearness to the centre.
    """
    amount = tl.zeros([BR, BC], tl.int64)
    from_there = tl.full([BR, BC], 0x7FFFFFFF, tl.int32)
    below = tl.full([BR, BC], -0x80000000, tl.int32)
    zero = tl.zeros([BR], tl.int32)
    least = least.to(tl.int32)
    for start in range(0, longest, BC):
        key, token, x, weight = _look(source, kept, zero + start, UNIT, SURVEYED, CANDIDATES, BC)
        if KIND == 2:
            key = -_distance(x, kept[5])
        is_there = weight > 0
        reaches = is_there & (key >= least[:, None])
        amount += tl.where(reaches, is_there.to(tl.int64) if KIND == 0 else weight, 0)
        from_there = tl.where(reaches, tl.minimum(from_there, key), from_there)
        below = tl.where(is_there & (key < least[:, None]), tl.maximum(below, key), below)
    return tl.sum(amount, axis=1), tl.min(from_there, axis=1).to(tl.int64), tl.max(below, axis=1).to(tl.int64)


@triton.jit
def _border(
    source, kept, wanted, is_wanted, whole, longest, KIND: tl.constexpr, UNIT: tl.constexpr, SURVEYED: tl.constexpr,
    CANDIDATES: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """The largest order from which on survivors reach `wanted`: k tokens (KIND 0), or a share of the weight.

    `whole` is that weight where a list holds only part of it, and 0 elsewhere.
    Returns it, whether it excludes anything, the amount from it on, the amount above it and the amount that was wanted.
    The interval that holds it is halved, and each end then moved to the next order that occurs.
    """
    lowest = tl.zeros([BR], tl.int64) - 0x80000000
    reached, lo, below = _sums(source, kept, lowest, longest, KIND, UNIT, SURVEYED, CANDIDATES, BR, BC)
    if KIND == 0:
        target = wanted.to(tl.int64)
        hi = _ordered(kept[0]).to(tl.int64) + 1
    else:
        target = tl.maximum(_share(tl.maximum(reached, whole), wanted, True), 1)
        hi = tl.zeros([BR], tl.int64) + 1 if KIND == 2 else _ordered(kept[0]).to(tl.int64) + 1
    is_wanted = is_wanted & (target < reached)
    hi = tl.where(is_wanted, hi, lo + 1)
    above = tl.zeros([BR], tl.int64)
    while tl.max(hi - lo, axis=0) > 1:
        middle = lo + ((hi - lo) >> 1)
        amount, least, below = _sums(source, kept, middle, longest, KIND, UNIT, SURVEYED, CANDIDATES, BR, BC)
        is_open = hi - lo > 1
        rises, falls = is_open & (amount >= target), is_open & (amount < target)
        reached = tl.where(rises, amount, reached)
        lo = tl.where(rises, least, lo)
        above = tl.where(falls, amount, above)
        hi = tl.where(falls, below + 1, hi)
    return lo, is_wanted, reached, above, target


@triton.jit
def _cut_ties(
    source, kept, border, reached, above, target, is_wanted, longest, UNIT: tl.constexpr, SURVEYED: tl.constexpr,
    CANDIDATES: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """The last id of those at the border that are needed for `target`: the lower ones, each of the same weight."""
    bits = border ^ ((border >> 31) & 0x7FFFFFFF)
    w = _weight(_depth(bits.to(tl.float32, bitcast=True), kept[0], kept[1]))
    each = tl.maximum((w * UNIT).to(tl.int64), 1)
    needed = (target - above + each - 1) // each
    cut = tl.full([BR], 0x7FFFFFFF, tl.int32)
    is_cut = is_wanted & (needed * each < reached - above)
    if _any(is_cut):
        seen = tl.zeros([BR], tl.int64)
        zero = tl.zeros([BR], tl.int32)
        for start in range(0, longest, BC):
            key, token, x, weight = _look(source, kept, zero + start, UNIT, SURVEYED, CANDIDATES, BC)
            ties = ((weight > 0) & (key == border[:, None])).to(tl.int64)
            rank = seen[:, None] + tl.cumsum(ties, axis=1)
            is_last = is_cut[:, None] & (ties > 0) & (rank == needed[:, None])
            cut = tl.minimum(cut, tl.min(tl.where(is_last, token, 0x7FFFFFFF), axis=1))
            seen += tl.sum(ties, axis=1)
    return cut


@triton.jit
def _moments(
    source, kept, longest, UNIT: tl.constexpr, SURVEYED: tl.constexpr, CANDIDATES: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr,
):
    """Survivors' weights, summed, and their mean depth."""
    total = tl.zeros([BR, BC], tl.int64)
    moment = tl.zeros([BR, BC], tl.int64)
    zero = tl.zeros([BR], tl.int32)
    for start in range(0, longest, BC):
        key, token, x, weight = _look(source, kept, zero + start, UNIT, SURVEYED, CANDIDATES, BC)
        total += weight
        moment += (x * weight.to(tl.float32)).to(tl.int64)
    sums = tl.sum(total, axis=1)
    return sums, tl.sum(moment, axis=1).to(tl.float32) / tl.maximum(sums, 1).to(tl.float32)


@triton.jit
def _filter(
    source, kept, settings, totals, longest, UNIT: tl.constexpr, SURVEYED: tl.constexpr, CANDIDATES: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):
    """`kept` after all filters, each on what the one before has left. `totals` are the sums of rows where known."""
    k, p, m, t = settings
    whole, whole_moment = totals
    is_alone = _has_typical_alone(k, p, m, t) & (whole > 0)
    top, rate, border, cut, least, centre, reach = kept
    if _any(k > 0):
        lo, is_wanted, reached, above, target = _border(
            source, kept, k, k > 0, whole, longest, 0, UNIT, SURVEYED, CANDIDATES, BR, BC
        )
        border = tl.where(is_wanted, lo, border).to(tl.int32)
    if _any(p < 1):
        kept = (top, rate, border, cut, least, centre, reach)
        lo, is_wanted, reached, above, target = _border(
            source, kept, p, p < 1, tl.where(k > 0, 0, whole), longest, 1, UNIT, SURVEYED, CANDIDATES, BR, BC
        )
        border = tl.where(is_wanted, lo, border).to(tl.int32)
        cut = _cut_ties(
            source, kept, border, reached, above, target, is_wanted, longest, UNIT, SURVEYED, CANDIDATES, BR, BC
        )
    least = tl.where(m > 0, tl.minimum(m, 1.0), least)
    if _any(t < 1):
        kept = (top, rate, border, cut, least, centre, reach)
        sums, mean = _moments(source, kept, longest, UNIT, SURVEYED, CANDIDATES, BR, BC)
        centre = tl.where(is_alone, whole_moment.to(tl.float32) / tl.maximum(whole, 1).to(tl.float32), mean)
        kept = (top, rate, border, cut, least, centre, reach)
        lo, is_wanted, reached, above, target = _border(
            source, kept, t, t < 1, tl.where(is_alone, whole, 0), longest, 2, UNIT, SURVEYED, CANDIDATES, BR, BC
        )
        reach = tl.where(is_wanted, -lo, reach).to(tl.int32)
    return top, rate, border, cut, least, centre, reach


@triton.jit
def _draw(
    source, kept, start, passed, target, UNIT: tl.constexpr, SURVEYED: tl.constexpr, CANDIDATES: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):
    """The first survivor from place `start` on with which the weight, `passed` before that place, exceeds `target`."""
    ends = source[4]
    found = tl.zeros([BR], tl.int32) - 1
    latest = tl.zeros([BR], tl.int32) - 1
    while _any((found < 0) & (start < ends)):
        key, token, x, weight = _look(source, kept, start, UNIT, SURVEYED, CANDIDATES, BC)
        upto = passed[:, None] + tl.cumsum(weight, axis=1)
        is_past = (weight > 0) & (upto > target[:, None])
        here = tl.min(tl.where(is_past, token, 0x7FFFFFFF), axis=1)
        found = tl.where((found < 0) & (here < 0x7FFFFFFF), here, found)
        latest = tl.maximum(latest, tl.max(tl.where(weight > 0, token, -1), axis=1))
        passed += tl.sum(weight, axis=1)
        start += BC
    return tl.where(found < 0, latest, found)


@triton.jit(do_not_specialize=["num_rows", "num_chunks"])
def choose(
    logits, best, best_at, totals, moments, values, ids, lengths, temperature, top_k, top_p, min_p, typical_p, uniform,
    token_ids, num_rows, vocab, chunk, num_chunks, UNIT: tl.constexpr, SURVEYED: tl.constexpr,
    CANDIDATES: tl.constexpr, CHUNKS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """A token for each row. Without SURVEYED there are neither sums of chunks nor lists: the row itself is looked at."""
    rows, top, is_row, is_warm, rate = _rows(temperature, best, num_rows, num_chunks, CHUNKS, BR)
    chunks = tl.arange(0, CHUNKS)
    place = rows.to(tl.int64)[:, None] * num_chunks + chunks[None, :]
    is_chunk = is_row[:, None] & (chunks < num_chunks)[None, :]
    largest = tl.load(best + place, mask=is_chunk, other=float("-inf"))
    where = tl.load(best_at + place, mask=is_chunk & (largest == top[:, None]), other=0x7FFFFFFF)
    chosen = tl.where(tl.abs(top) < float("inf"), tl.min(where, axis=1), -1)
    if _any(is_warm):
        k, p, m, t, is_filtered = _filters(top_k, top_p, min_p, typical_p, rows, is_warm, vocab)
        is_listed = is_row & (rows < 0)
        length = tl.zeros([BR], tl.int32) + vocab
        is_whole = is_warm & (rows < 0)
        of_chunk = tl.zeros([BR, CHUNKS], tl.int64)
        moment = tl.zeros([BR], tl.int64)
        if SURVEYED:
            length = tl.load(lengths + rows, mask=is_filtered, other=-1)
            is_listed = length >= 0
            length = tl.where(is_listed, length, vocab)
            is_whole = is_warm & (is_filtered == 0)
            of_chunk = tl.load(totals + place, mask=is_chunk & is_warm[:, None], other=0)
            has_moment = is_chunk & (is_warm & (t < 1))[:, None]
            moment = tl.sum(tl.load(moments + place, mask=has_moment, other=0), axis=1)
        ends = tl.where(is_warm & (is_whole == 0), length, 0)
        whole = tl.sum(of_chunk, axis=1)
        longest = tl.max(ends, axis=0)
        source = (logits, values, ids, rows, ends, is_listed, vocab)
        far = tl.full([BR], 0x7FFFFFFF, tl.int32)
        nothing = tl.zeros([BR], tl.float32)
        top = tl.where(is_warm, top, 0.0)
        kept = (top, rate, -far, far, nothing, nothing, far)
        kept = _filter(source, kept, (k, p, m, t), (whole, moment), longest, UNIT, SURVEYED, CANDIDATES, BR, BC)
        total, mean = _moments(source, kept, longest, UNIT, SURVEYED, CANDIDATES, BR, BC)
        u = tl.load(uniform + rows, mask=is_warm, other=0.0)
        target = _share(tl.where(is_whole, whole, total), u, False)
        # a row without filters: the chunk in which it is found, from the sums
        is_before = is_whole[:, None] & (tl.cumsum(of_chunk, axis=1) <= target[:, None])
        start = tl.sum(is_before.to(tl.int32), axis=1) * chunk
        passed = tl.sum(tl.where(is_before, of_chunk, 0), axis=1)
        source = (logits, values, ids, rows, tl.where(is_whole, vocab, ends), is_listed, vocab)
        drawn = _draw(source, kept, start, passed, target, UNIT, SURVEYED, CANDIDATES, BR, BC)
        chosen = tl.where(is_warm, drawn, chosen)
    tl.store(token_ids + rows, chosen, mask=is_row)
