"""The last kernel of sampling: exact filters over a list of candidates or a whole row, and the draw.

Its stages are turns of one loop over the same code: a border is searched by summing up what lies beyond it, a token by
walking in order of id. As filters differ in few instructions and a chip fetches code anew for every step of a model,
there is one copy of either.
"""

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

TOP_K, TOP_P, TIES, TYPICAL, TOTAL, DRAW = 0, 1, 2, 3, 4, 5
"""Stages, in this order; min_p acts before TYPICAL."""


@triton.jit
def _distance(x, centre):
    return tl.abs(x - centre[:, None]).to(tl.int32, bitcast=True)


@triton.jit
def _load(source, start, BC: tl.constexpr):
    """Places and logits of BC tokens of each row from place `start` [BR] on; -inf behind the last one.

    source  where the logits of each row lie (its list, or itself) and how many there are, in order of id
    """
    logits, ends = source
    at = start[:, None] + tl.arange(0, BC)[None, :]
    return at, tl.load(logits[:, None] + at, mask=at < ends[:, None], other=float("-inf"))


@triton.jit
def _look(at, v, kept, UNIT: tl.constexpr):
    """Order of logits, depth, and weight (0: filtered, or no token) of tokens at places `at`.

    kept    top, rate; survivors: logits from `border` on (equal ones up to place `cut`), weights from `least` on,
            distances from `centre` up to `reach` (as bits)
    """
    top, rate, border, cut, least, centre, reach = kept
    x = _depth(v, top[:, None], rate[:, None])
    w = _weight(x)
    key = _ordered(v)
    survives = (key > border[:, None]) | ((key == border[:, None]) & (at <= cut[:, None]))
    survives = survives & (w >= least[:, None]) & (_distance(x, centre) <= reach[:, None])
    return key, x, tl.where(survives, (w * UNIT).to(tl.int64), 0)


@triton.jit
def _sums(
    source, kept, stage, least, longest, UNIT: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """Over survivors: the amount (tokens for TOP_K, else weight) with an order of `least` and more, their weights times
    depths (for TYPICAL), the least order among them, and the next one below. The order is that of logits; for TYPICAL
    nearness to the centre.
    """
    amount = tl.zeros([BR, BC], tl.int64)
    moment = tl.zeros([BR, BC], tl.int64)
    from_there = tl.full([BR, BC], 0x7FFFFFFF, tl.int32)
    below = tl.full([BR, BC], -0x80000000, tl.int32)
    zero = tl.zeros([BR], tl.int32)
    at, v = _load(source, zero, BC)
    for start in range(0, longest, BC):
        # on its way while this one is looked at
        next_at, next_v = _load(source, zero + start + BC, BC)
        key, x, weight = _look(at, v, kept, UNIT)
        at, v = next_at, next_v
        if stage == 3:
            key = -_distance(x, kept[5])
            moment += (x * weight.to(tl.float32)).to(tl.int64)
        is_there = weight > 0
        reaches = is_there & (key >= least[:, None])
        amount += tl.where(reaches, tl.where(stage == 0, 1, weight), 0)
        from_there = tl.where(reaches, tl.minimum(from_there, key), from_there)
        below = tl.where(is_there & (key < least[:, None]), tl.maximum(below, key), below)
    least_there = tl.min(from_there, axis=1).to(tl.int64)
    return tl.sum(amount, axis=1), tl.sum(moment, axis=1), least_there, tl.max(below, axis=1).to(tl.int64)


@triton.jit
def _border(
    source, kept, stage, settings, totals, longest, UNIT: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """The largest order from which on survivors reach the wanted amount: k tokens, or a share of the weight.

    Returns it, whether it excludes anything, the amounts of all survivors, from it on, above it, and wanted, and the
    mean depth (TYPICAL). The interval that holds the border is halved, and each end moved to the next order that
    occurs. `totals` are weight and moment of whole rows, where a list holds but a part of them.
    """
    k, p, t, is_alone = settings
    whole, whole_moment = totals
    top, rate, border, cut, least, centre, reach = kept
    lo = tl.zeros([BR], tl.int64) - 0x80000000
    hi = lo + 2
    total = tl.zeros([BR], tl.int64)
    above = tl.zeros([BR], tl.int64)
    reached = tl.zeros([BR], tl.int64)
    target = tl.zeros([BR], tl.int64)
    is_first = 1
    while (is_first == 1) | (tl.max(hi - lo, axis=0) > 1):
        middle = lo + ((hi - lo) >> 1)
        kept = (top, rate, border, cut, least, centre, reach)
        amount, moment, next_up, next_down = _sums(
            source, kept, stage, middle.to(tl.int32), longest, UNIT, BR, BC
        )
        if is_first == 1:
            is_first = 0
            total = amount
            reached = amount
            known = ((stage == 1) & (k == 0)) | ((stage == 3) & is_alone)
            base = tl.where(known, tl.maximum(whole, amount), amount)
            target = tl.maximum(_share(base, tl.where(stage == 1, p, t), True), 1)
            target = tl.where(stage == 0, k.to(tl.int64), target)
            is_wanted = ((stage == 0) & (k > 0)) | ((stage == 1) & (p < 1)) | ((stage == 3) & (t < 1))
            moment = tl.where(is_alone & (whole > 0), whole_moment, moment)
            mean = moment.to(tl.float32) / tl.maximum(base, 1).to(tl.float32)
            centre = tl.where(is_wanted & (stage == 3), mean, centre)
            lo = tl.where(stage == 3, -0x42000000, next_up)  # no distance is so large
            ends = tl.where(stage == 3, 1, _ordered(top).to(tl.int64) + 1)
            hi = tl.where(is_wanted & (target < amount), ends, lo + 1)
        else:
            is_open = hi - lo > 1
            rises, falls = is_open & (amount >= target), is_open & (amount < target)
            reached = tl.where(rises, amount, reached)
            lo = tl.where(rises, next_up, lo)
            above = tl.where(falls, amount, above)
            hi = tl.where(falls, next_down + 1, hi)
    return lo, total, reached, above, target, centre


@triton.jit
def _find(
    source, kept, is_tie, start, passed, target, UNIT: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """The place of the first survivor from `start` on with which the weight exceeds `target`; `passed` is before it.

    For ties it is not weights that count but tokens at the border.
    """
    border, ends = kept[2], source[1]
    found = tl.zeros([BR], tl.int32) - 1
    latest = tl.zeros([BR], tl.int32) - 1
    at, v = _load(source, start, BC)
    while _any((found < 0) & (start < ends)):
        start += BC
        next_at, next_v = _load(source, start, BC)
        key, _, weight = _look(at, v, kept, UNIT)
        counts_once = (weight > 0) & (key == border[:, None])
        amount = tl.where(is_tie, counts_once.to(tl.int64), weight)
        is_past = (amount > 0) & (passed[:, None] + tl.cumsum(amount, axis=1) > target[:, None])
        here = tl.min(tl.where(is_past, at, 0x7FFFFFFF), axis=1)
        found = tl.where((found < 0) & (here < 0x7FFFFFFF), here, found)
        latest = tl.maximum(latest, tl.max(tl.where(amount > 0, at, -1), axis=1))
        passed += tl.sum(amount, axis=1)
        at, v = next_at, next_v
    return tl.where(found < 0, latest, found)


@triton.jit
def _needed_ties(top, rate, border, reached, above, target, UNIT: tl.constexpr):
    """How many of the tokens at the border are needed for `target`; -1 where all of them are."""
    bits = border ^ ((border >> 31) & 0x7FFFFFFF)
    each = (_weight(_depth(bits.to(tl.float32, bitcast=True), top, rate)) * UNIT).to(tl.int64)
    needed = (target - above + each - 1) // tl.maximum(each, 1)
    return tl.where(needed * each < reached - above, needed, -1)


@triton.jit
def _draw(
    source, top, rate, filters, u, is_warm, totals, begin, UNIT: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """The place of a token for each row that is drawn from. `begin`: which rows have no filters, where their draws
    begin (place, weight before it), the weight that is to be exceeded there, and where their places end."""
    k, p, m, t = filters
    logits, ends = source
    is_whole, whole_start, whole_passed, whole_target, vocab = begin
    longest = tl.max(ends, axis=0)
    settings = (k, p, t, _has_typical_alone(k, p, m, t))
    cut = tl.full([BR], 0x7FFFFFFF, tl.int32)
    border, reach = -cut, cut
    least = tl.zeros([BR], tl.float32)
    centre = tl.zeros([BR], tl.float32)
    needed = tl.zeros([BR], tl.int64) - 1
    total = tl.zeros([BR], tl.int64)
    drawn = tl.zeros([BR], tl.int32)
    for stage in range(6):
        is_needed = ((stage == 0) & (k > 0)) | ((stage == 1) & (p < 1)) | ((stage == 2) & (needed >= 0))
        is_needed = is_needed | ((stage == 3) & (t < 1)) | ((stage == 4) & (ends > 0)) | ((stage == 5) & is_warm)
        if _any(is_needed):
            least = tl.where((stage > 2) & (m > 0), tl.minimum(m, 1.0), least)
            kept = (top, rate, border, cut, least, centre, reach)
            if (stage == 2) | (stage == 5):
                is_draw = stage == 5
                start = tl.where(is_draw & is_whole, whole_start, 0)
                passed = tl.where(is_draw & is_whole, whole_passed, 0)
                target = tl.where(is_whole, whole_target, _share(total, u, False))
                target = tl.where(is_draw, target, needed - 1)
                until = tl.where(is_draw, tl.where(is_whole, vocab, ends), tl.where(needed >= 0, ends, 0))
                looked_at = (logits, until)
                found = _find(
                    looked_at, kept, stage == 2, start, passed, target, UNIT, BR, BC
                )
                cut = tl.where((stage == 2) & (needed >= 0), found, cut)
                drawn = found
            else:
                lo, total, reached, above, target, centre = _border(
                    source, kept, stage, settings, totals, longest, UNIT, BR, BC
                )
                is_new = is_needed & (target < total)
                at = lo.to(tl.int32)
                border = tl.where(is_new & (stage < 2), at, border)
                reach = tl.where(is_new & (stage == 3), -at, reach)
                ties = _needed_ties(top, rate, border, reached, above, target, UNIT)
                needed = tl.where(is_new & (stage == 1), ties, -1)
    return drawn


@triton.jit(do_not_specialize=["num_rows", "num_chunks"])
def choose(
    logits, best, best_at, totals, moments, values, ids, lengths, temperature, top_k, top_p, min_p, typical_p, uniform,
    token_ids, num_rows, vocab, chunk, num_chunks, candidates, UNIT: tl.constexpr, SURVEYED: tl.constexpr,
    CHUNKS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """A token for each row. Without SURVEYED there are neither sums of chunks nor lists: rows are searched."""
    rows, top, is_row, is_warm, rate = _rows(temperature, best, num_rows, num_chunks, CHUNKS, BR)
    chunks = tl.arange(0, CHUNKS)
    place = rows.to(tl.int64)[:, None] * num_chunks + chunks[None, :]
    is_chunk = is_row[:, None] & (chunks < num_chunks)[None, :]
    largest = tl.load(best + place, mask=is_chunk, other=float("-inf"))
    where = tl.load(best_at + place, mask=is_chunk & (largest == top[:, None]), other=0x7FFFFFFF)
    chosen = tl.where(tl.abs(top) < float("inf"), tl.min(where, axis=1), -1)
    if _any(is_warm):
        top = tl.where(is_warm, top, 0.0)
        k, p, m, t, is_filtered = _filters(top_k, top_p, min_p, typical_p, rows, is_warm, vocab)
        u = tl.load(uniform + rows, mask=is_warm, other=0.0)
        is_listed = is_row & (rows < 0)
        is_whole = is_listed
        length = tl.zeros([BR], tl.int32) + vocab
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
        row = rows.to(tl.int64)
        source = (tl.where(is_listed, values + row * candidates, logits + row * vocab), ends)
        # a row without filters: the chunk in which its token is found, from the sums
        whole = tl.sum(of_chunk, axis=1)
        target = _share(whole, u, False)
        is_before = is_whole[:, None] & (tl.cumsum(of_chunk, axis=1) <= target[:, None])
        start = tl.sum(is_before.to(tl.int32), axis=1) * chunk
        begin = (is_whole, start, tl.sum(tl.where(is_before, of_chunk, 0), axis=1), target, vocab)
        drawn = _draw(
            source, top, rate, (k, p, m, t), u, is_warm, (whole, moment), begin, UNIT, BR, BC
        )
        if SURVEYED:
            drawn = tl.where(is_listed, tl.load(ids + row * candidates + drawn, mask=is_listed, other=0), drawn)
        chosen = tl.where(is_warm, drawn, chosen)
    tl.store(token_ids + rows, chosen, mask=is_row)
