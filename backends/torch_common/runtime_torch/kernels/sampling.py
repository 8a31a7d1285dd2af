"""Drawing of tokens without sorting: weights are whole numbers, and borders among them are found by halving.

A row is split over programs (chunks). `maxima` finds its largest logit; with it, a token's depth is
(largest - logit) / temperature and its weight exp(-depth) in units of 2^-FRACTION, as int64. Sums of whole numbers are
exact in any order: a row has the same results alone and in a batch, however it is split, on every chip; and no float64
is needed, which some chips lack. `survey` sums the weights of a chunk and counts its tokens by depth; from the counts,
`gather` knows a depth below which no survivor of the filters lies and copies what is above it into a short list, in
order of id; `choose` filters the list exactly (or the row itself, where the list would be long) and draws.

Errors against the declaration, which is in float64: a depth is a float32 product and an exponential a float32 one, so
that the weight of depth d is off by about (2 d + 4) 2^-23 of itself, and cumulative probabilities by less than 2^-19;
tokens below 2^-FRACTION of the most probable one count as impossible. Distances from the entropy (typical_p) that
float32 does not tell apart are ties.
"""

import triton
import triton.language as tl

BINS = 128
"""Of depths: below 1/8, sixteen to an octave up to 30, and from there on, where weights are 0 (2^-42 is e^-29.1)."""


@triton.jit
def _depth(v, top, rate):
    """How far `v` lies below `top`, in temperatures: from 0 to 30. `rate` is 1 / temperature."""
    d = top - v
    x = tl.where(d > 0, d * rate, 0.0)
    return tl.where(x < 30.0, x, 30.0)  # NaN too: -inf at an infinite temperature


@triton.jit
def _weight(x):
    return tl.where(x < 30.0, tl.exp(-x), 0.0)


@triton.jit
def _bin(x):
    """Of 128; 1984 is 1/8 to four bits of its mantissa."""
    return tl.minimum(tl.maximum((x.to(tl.int32, bitcast=True) >> 19) - 1983, 0), 127)


@triton.jit
def _share(total, p, ROUND_UP: tl.constexpr):
    """total * p, with p in [0, 1) counted in 2^-30: numbers of 24 bits from 2^-7 on are exact."""
    parts = tl.minimum(tl.maximum((p * 1073741824.0).to(tl.int64), 0), 1073741760)
    low = (total & 1073741823) * parts
    if ROUND_UP:
        low += 1073741823
    return (total >> 30) * parts + (low >> 30)


@triton.jit
def _ordered(v):
    """int32 in the order of float32; 0 and -0 are equal."""
    bits = tl.where(v == 0.0, 0.0, v).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _any(condition):
    return tl.max(condition.to(tl.int32), axis=0) > 0


@triton.jit
def _rows(temperature, best, num_rows, num_chunks, CHUNKS: tl.constexpr, BR: tl.constexpr):
    """Rows of the program, their largest logits, which exist, which are drawn from, 1 / temperature (else 1)."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    is_row = rows < num_rows
    chunks = tl.arange(0, CHUNKS)
    at = rows.to(tl.int64)[:, None] * num_chunks + chunks[None, :]
    mask = is_row[:, None] & (chunks < num_chunks)[None, :]
    top = tl.max(tl.load(best + at, mask=mask, other=float("-inf")), axis=1)
    t = tl.load(temperature + rows, mask=is_row, other=0.0)
    is_warm = is_row & (t > 0) & (tl.abs(top) < float("inf"))
    return rows, top, is_row, is_warm, 1.0 / tl.where(is_warm, t, 1.0)


@triton.jit
def _filters(top_k, top_p, min_p, typical_p, rows, is_warm, vocab):
    """Settings of the rows, and which rows have any filter. What is off, or a row not drawn from, has neutral ones."""
    k = tl.load(top_k + rows, mask=is_warm, other=0)
    k = tl.where((k > 0) & (k < vocab), k, 0)
    p = tl.load(top_p + rows, mask=is_warm, other=1.0)
    m = tl.load(min_p + rows, mask=is_warm, other=0.0)
    t = tl.load(typical_p + rows, mask=is_warm, other=1.0)
    return k, p, m, t, (k > 0) | (p < 1) | (m > 0) | (t < 1)


@triton.jit(do_not_specialize=["num_rows", "num_chunks"])
def maxima(logits, best, best_at, num_rows, vocab, chunk, num_chunks, BR: tl.constexpr, BC: tl.constexpr):
    """The largest logit of a chunk of each row, and where it is first; infinity where the chunk holds NaN."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    is_row = rows < num_rows
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, vocab)
    largest = tl.full([BR, BC], float("-inf"), tl.float32)
    where = tl.zeros([BR, BC], tl.int32) + first
    for start in range(first, last, BC):
        at = start + tl.arange(0, BC)
        mask = is_row[:, None] & (at < last)[None, :]
        v = tl.load(logits + rows.to(tl.int64)[:, None] * vocab + at[None, :], mask=mask, other=float("-inf"))
        v = tl.where(v == v, v, float("inf"))
        is_larger = v > largest
        largest = tl.where(is_larger, v, largest)
        where = tl.where(is_larger, at[None, :], where)
    top = tl.max(largest, axis=1)
    top_at = tl.min(tl.where(largest == top[:, None], where, 0x7FFFFFFF), axis=1)
    place = rows.to(tl.int64) * num_chunks + tl.program_id(1)
    tl.store(best + place, top, mask=is_row)
    tl.store(best_at + place, top_at, mask=is_row)


@triton.jit(do_not_specialize=["num_rows", "num_chunks"])
def survey(
    logits, best, temperature, top_k, top_p, min_p, typical_p, totals, moments, counts, num_rows, vocab, chunk,
    num_chunks, UNIT: tl.constexpr, CHUNKS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """Of a chunk of each row that is drawn from: sum of weights, sum of weights times depths, tokens by depth.

    The second is for rows with typical_p, the third for rows with any filter.
    """
    rows, top, _, is_warm, rate = _rows(temperature, best, num_rows, num_chunks, CHUNKS, BR)
    top = tl.where(is_warm, top, 0.0)
    if not _any(is_warm):
        return
    _, _, _, t, is_filtered = _filters(top_k, top_p, min_p, typical_p, rows, is_warm, vocab)
    has_filters, has_typical = _any(is_filtered), _any(t < 1)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, vocab)
    total = tl.zeros([BR, BC], tl.int64)
    moment = tl.zeros([BR, BC], tl.int64)
    count = tl.zeros([BR * 128], tl.int32)
    for start in range(first, last, BC):
        at = start + tl.arange(0, BC)
        mask = is_warm[:, None] & (at < last)[None, :]
        v = tl.load(logits + rows.to(tl.int64)[:, None] * vocab + at[None, :], mask=mask, other=float("-inf"))
        x = _depth(v, top[:, None], rate[:, None])
        w = _weight(x)
        total += (w * UNIT).to(tl.int64)
        if has_typical:
            moment += (w * x * UNIT).to(tl.int64)
        if has_filters:
            which = _bin(x) + 128 * tl.arange(0, BR)[:, None]
            count += tl.histogram(tl.reshape(which, [BR * BC]), BR * 128)
    place = rows.to(tl.int64) * num_chunks + tl.program_id(1)
    tl.store(totals + place, tl.sum(total, axis=1), mask=is_warm)
    tl.store(moments + place, tl.sum(moment, axis=1), mask=is_warm)
    at = place[:, None] * 128 + tl.arange(0, 128)[None, :]
    tl.store(counts + at, tl.reshape(count, [BR, 128]), mask=is_filtered[:, None])


@triton.jit
def _has_typical_alone(k, p, m, t):
    return (t < 1) & (k == 0) & (p >= 1) & (m <= 0)


@triton.jit
def _last_bin(count, total, moment, k, p, m, t, UNIT: tl.constexpr):
    """The last bin of depths in which a survivor can lie, for each row.

    What lies beyond a bin weighs no more than the counts times the weights at the near ends of their bins. top_p and
    typical_p need nothing beyond where that is less than what they may leave out, by a margin for rounding.
    """
    j = tl.arange(0, 128)[None, :]
    near = tl.where(j > 0, ((j + 1983) << 19).to(tl.float32, bitcast=True), 0.0)
    far = ((j + 1984) << 19).to(tl.float32, bitcast=True)
    term = tl.where(j < 127, count.to(tl.int64) * (_weight(near) * UNIT).to(tl.int64), 0)
    beyond = tl.sum(term, axis=1)[:, None] - tl.cumsum(term, axis=1)
    fewer = tl.cumsum(count, axis=1) < k[:, None]
    of_top_k = tl.where(k > 0, tl.sum(fewer.to(tl.int32), axis=1), 126)
    spare = total - _share(total, p, True)
    spare -= spare >> 10
    last = tl.where(p < 1, tl.minimum(of_top_k, tl.sum((beyond > spare[:, None]).to(tl.int32), axis=1)), of_top_k)
    deepest = _bin(tl.minimum(-1.001 * tl.log(tl.where(m > 0, tl.minimum(m, 1.0), 1.0)) + 0.001, 30.0))
    last = tl.where(m > 0, tl.minimum(last, deepest), last)
    last = tl.where((k > 0) & (p < 1), of_top_k, last)  # its survivors are the whole that top_p is a share of
    spare = total - _share(total, t, True)
    spare -= spare >> 10
    # all that is as near to the mean depth as the far end lies at depths from 0 to that end
    centre = moment.to(tl.float32) / tl.maximum(total, 1).to(tl.float32)
    is_short = (beyond > spare[:, None]) | (far * 0.999 < 2.0 * centre[:, None])
    last = tl.where(_has_typical_alone(k, p, m, t), tl.sum(is_short.to(tl.int32), axis=1), last)
    return tl.minimum(last, 126)


@triton.jit(do_not_specialize=["num_rows", "num_chunks"])
def gather(
    logits, best, temperature, top_k, top_p, min_p, typical_p, totals, moments, counts, values, ids, lengths, num_rows,
    vocab, chunk, num_chunks, candidates, UNIT: tl.constexpr, CHUNKS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """Tokens that may survive the filters of each row, in order of id; more than `candidates` are not listed (-1)."""
    rows, top, _, is_warm, rate = _rows(temperature, best, num_rows, num_chunks, CHUNKS, BR)
    top = tl.where(is_warm, top, 0.0)
    k, p, m, t, is_filtered = _filters(top_k, top_p, min_p, typical_p, rows, is_warm, vocab)
    number = tl.program_id(1)
    length = tl.zeros([BR], tl.int32) - 1
    if _any(is_filtered):
        chunks = tl.arange(0, CHUNKS)
        place = rows.to(tl.int64)[:, None] * num_chunks + chunks[None, :]
        mask = is_filtered[:, None] & (chunks < num_chunks)[None, :]
        total = tl.sum(tl.load(totals + place, mask=mask, other=0), axis=1)
        moment = tl.sum(tl.load(moments + place, mask=mask, other=0), axis=1)
        at = place[:, :, None] * 128 + tl.arange(0, 128)[None, None, :]
        count = tl.load(counts + at, mask=mask[:, :, None], other=0)
        last_bin = _last_bin(tl.sum(count, axis=1), total, moment, k, p, m, t, UNIT)
        taken = tl.sum(tl.where(tl.arange(0, 128)[None, None, :] <= last_bin[:, None, None], count, 0), axis=2)
        found = tl.sum(taken.to(tl.int64), axis=1)
        length = tl.where(is_filtered & (found <= candidates), found, -1).to(tl.int32)
        offset = tl.sum(tl.where(chunks[None, :] < number, taken, 0), axis=1)
        is_listed = length >= 0
        if _any(is_listed):
            first = number * chunk
            last = tl.minimum(first + chunk, vocab)
            row = rows.to(tl.int64)[:, None]
            for start in range(first, last, BC):
                at_token = start + tl.arange(0, BC)
                inside = is_listed[:, None] & (at_token < last)[None, :]
                v = tl.load(logits + row * vocab + at_token[None, :], mask=inside, other=float("-inf"))
                is_near = inside & (_bin(_depth(v, top[:, None], rate[:, None])) <= last_bin[:, None])
                ahead = tl.cumsum(is_near.to(tl.int32), axis=1)
                to = row * candidates + offset[:, None] + ahead - 1
                tl.store(values + to, v, mask=is_near)
                tl.store(ids + to, at_token[None, :] + tl.zeros([BR, BC], tl.int32), mask=is_near)
                offset += tl.sum(is_near.to(tl.int32), axis=1)
    tl.store(lengths + rows, length, mask=rows < tl.where(number == 0, num_rows, 0))
