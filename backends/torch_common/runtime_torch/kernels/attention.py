"""Attention over a paged cache for ragged batches: tiles of queries and grouped heads, long ones split over keys.

Scores are in units of log2: exp2 is what chips compute, exp is that and one product more.
"""

import triton
import triton.language as tl

from runtime_torch.kernels.blocks import operand
from runtime_torch.kernels.functions import tanh


@triton.jit
def _count_items(count, length, BQ: tl.constexpr, BK: tl.constexpr, WINDOW: tl.constexpr):
    """Of sequences with `count` queries and `length` keys: tiles of queries, and steps of keys that one can need."""
    keys = length
    if WINDOW > 0:
        keys = tl.minimum(length, WINDOW + BQ + BK)
    return tl.cdiv(count, BQ), tl.cdiv(keys, BK)


@triton.jit
def _find_item(
    query_start_loc, seq_lens, num_rows, num_seqs, item, programs, SEQS: tl.constexpr, BQ: tl.constexpr,
    BK: tl.constexpr, LEAST_STEPS: tl.constexpr, WINDOW: tl.constexpr,
):
    """What a program is to do: sequence, its number of queries and of keys, first query, part of how many, slot.

    All that the sequences need is divided by `programs`, which gives the steps of a part; a tile of queries has as many
    parts as its sequence is long. Rows behind the last sequence are one more, without keys. Parts of tiles that are
    split have slots, numbered through.
    """
    s = tl.arange(0, SEQS)
    starts = tl.load(query_start_loc + s, mask=s <= num_seqs, other=0)
    ends = tl.load(query_start_loc + s + 1, mask=s < num_seqs, other=0)
    lengths = tl.load(seq_lens + s, mask=s < num_seqs, other=0)
    counts = tl.where(s < num_seqs, ends - starts, tl.where(s == num_seqs, num_rows - starts, 0))
    tiles, steps = _count_items(counts, lengths, BQ, BK, WINDOW)
    per_part = tl.maximum(LEAST_STEPS, tl.cdiv(tl.sum(tiles * steps, axis=0), programs))
    parts = tl.maximum(1, tl.cdiv(steps, per_part))
    items = tiles * parts
    seq = tl.sum((tl.cumsum(items, axis=0) <= item).to(tl.int32), axis=0)
    before = s < seq
    local = item - tl.sum(tl.where(before, items, 0), axis=0)
    slot = tl.sum(tl.where(before & (parts > 1), items, 0), axis=0) + local
    is_this = s == seq
    count = tl.sum(tl.where(is_this, counts, 0), axis=0)
    length = tl.sum(tl.where(is_this, lengths, 0), axis=0)
    start = tl.sum(tl.where(is_this, starts, 0), axis=0)
    num_parts = tl.maximum(1, tl.sum(tl.where(is_this, parts, 0), axis=0))
    # a prompt's last queries see most keys: they come first, so that none is left over at the end
    first_query = (tl.cdiv(count, BQ) - 1 - local // num_parts) * BQ
    return seq, start, count, length, first_query, local % num_parts, per_part, slot


@triton.jit
def _find_keys(
    length, num_queries, first_query, part, per_part, WINDOW: tl.constexpr, CAUSAL: tl.constexpr, BQ: tl.constexpr,
    BK: tl.constexpr,
):
    """The first key that a tile's queries see, begin and end of one part in steps of BK, and how many parts it has."""
    end = length
    if CAUSAL:
        end = tl.minimum(length, length - num_queries + first_query + BQ)
    lowest = length * 0
    if WINDOW > 0:
        lowest = tl.maximum(0, length - num_queries + first_query - WINDOW + 1)
    begin = lowest // BK * BK
    steps = tl.cdiv(end - begin, BK)
    # of equal size, as far as steps go
    per_part = tl.maximum(1, tl.cdiv(steps, tl.maximum(1, tl.cdiv(steps, per_part))))
    begin += part * per_part * BK
    return lowest, begin, tl.minimum(end, begin + per_part * BK), tl.maximum(1, tl.cdiv(steps, per_part))


@triton.jit
def _load_pair(
    kv, values, table, key, kv_head, d, lowest, end, MASKED: tl.constexpr, MODE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):
    """Keys and values `key` .. `key` + BK as operands: as they are stored, or widened."""
    j = tl.arange(0, BK)
    keys = key + j
    # key is a multiple of BK: within blocks, places are the same in every step where one is a multiple of the other
    if BLOCK_SIZE % BK == 0:
        block = tl.load(table + key // BLOCK_SIZE).to(tl.int64) + tl.zeros_like(j)
        within = key % BLOCK_SIZE + j
    else:
        if BK % BLOCK_SIZE == 0:
            index = key // BLOCK_SIZE + j // BLOCK_SIZE
            within = j % BLOCK_SIZE
        else:
            index = keys // BLOCK_SIZE
            within = keys % BLOCK_SIZE
        if MASKED:
            block = tl.load(table + index, mask=(keys >= lowest) & (keys < end), other=0).to(tl.int64)
        else:
            block = tl.load(table + index).to(tl.int64)
    row = block * (BLOCK_SIZE * NUM_KV_HEADS * HEAD_DIM) + (within * NUM_KV_HEADS + kv_head) * HEAD_DIM
    at = row[:, None] + d[None, :]
    if MASKED:
        mask = ((keys >= lowest) & (keys < end))[:, None] & (d < HEAD_DIM)[None, :]
        k = tl.load(kv + at, mask=mask, other=0.0)
        v = tl.load(values + at, mask=mask, other=0.0)
    elif HEAD_DIM < BD:
        mask = (keys >= 0)[:, None] & (d < HEAD_DIM)[None, :]
        k = tl.load(kv + at, mask=mask, other=0.0)
        v = tl.load(values + at, mask=mask, other=0.0)
    else:
        k = tl.load(kv + at)
        v = tl.load(values + at)
    if MODE == 0 or MODE > 2:
        k = k.to(tl.float32)
        v = v.to(tl.float32)
    return k, v


@triton.jit
def _cap(scores, softcap, MODE: tl.constexpr):
    """softcap tanh(scores / softcap); in halves, without the care for small arguments that float32 takes."""
    x = scores / softcap
    if MODE == 0:
        y = tanh(x)
    else:
        y = 1.0 - 2.0 / (1.0 + tl.exp2(x * 2.8853900817779268))
    return y * softcap


@triton.jit
def _attend(
    state, qs, kv, values, table, slope, position, kv_head, first, last, lowest, end, scale, softcap,
    MASKED: tl.constexpr, BLOCK_SIZE: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, SLOPES: tl.constexpr, MODE: tl.constexpr,
    BK: tl.constexpr, BD: tl.constexpr,
):
    """Keys first .. last in steps of BK; `state` is the largest score, the sum of weights and the weighted values."""
    m, total, acc = state
    d = tl.arange(0, BD)
    j = tl.arange(0, BK)
    for key in range(first, last, BK):
        ks, vs = _load_pair(
            *(kv, values, table, key, kv_head, d, lowest, end, MASKED, MODE),
            *(BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, BK, BD),
        )
        scores = tl.dot(qs, tl.trans(ks), input_precision="ieee")
        # what turns a score into units of log2; where nothing comes between, it goes into the difference below
        unit = scale * 1.4426950408889634
        keys = key + j
        if SOFTCAP or SLOPES:
            scores *= scale
            if SOFTCAP:
                scores = _cap(scores, softcap, MODE)
            if SLOPES:
                scores -= slope[:, None] * (position[:, None] - keys[None, :]).to(tl.float32)
            unit = 1.4426950408889634
        if MASKED:
            visible = (keys < end)[None, :]
            if CAUSAL:
                visible = visible & (keys[None, :] <= position[:, None])
            if WINDOW > 0:
                visible = visible & (keys[None, :] > position[:, None] - WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        largest = tl.maximum(m, tl.max(scores, axis=1) * unit)
        shift = largest
        if MASKED:
            shift = tl.where(largest == float("-inf"), 0.0, largest)
        p = tl.exp2(scores * unit - shift[:, None])
        factor = tl.exp2(m - shift)
        total = total * factor + tl.sum(p, axis=1)
        acc = tl.dot(operand(p, MODE), vs, acc * factor[:, None], input_precision="ieee")
        m = largest
    return m, total, acc


@triton.jit
def _attend_part(
    state, qs, kv, values, table, slope, position, kv_head, begin, lowest, end, scale, softcap, first_position,
    PHASES: tl.constexpr, BQ: tl.constexpr, BLOCK_SIZE: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, SLOPES: tl.constexpr,
    MODE: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):
    """Keys begin .. end: with PHASES those at the window's edge, those that all queries see, and the rest."""
    if PHASES:
        all_see = begin
        all_end = end
        if CAUSAL:
            all_end = tl.minimum(end, first_position + 1)
        if WINDOW > 0:
            all_see = tl.maximum(tl.cdiv(first_position + BQ - WINDOW, BK) * BK, begin)
            all_see = tl.where(all_see < end, all_see, begin + tl.cdiv(end - begin, BK) * BK)
            state = _attend(
                *(state, qs, kv, values, table, slope, position, kv_head, begin, all_see, lowest, end, scale, softcap),
                *(True, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, WINDOW, CAUSAL, SOFTCAP, SLOPES, MODE, BK, BD),
            )
        all_end = tl.maximum(all_see, all_see + (all_end - all_see) // BK * BK)
        state = _attend(
            *(state, qs, kv, values, table, slope, position, kv_head, all_see, all_end, lowest, end, scale, softcap),
            *(False, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, WINDOW, CAUSAL, SOFTCAP, SLOPES, MODE, BK, BD),
        )
        begin = all_end
    return _attend(
        *(state, qs, kv, values, table, slope, position, kv_head, begin, end, lowest, end, scale, softcap),
        *(True, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, WINDOW, CAUSAL, SOFTCAP, SLOPES, MODE, BK, BD),
    )


@triton.jit
def _leave_part(
    partial, largest, sums, arrivals, m, total, acc, slot, part, num_parts, kv_head, row, is_query, d,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BM: tl.constexpr,
):
    """Put a part into its slot; whether all others are in theirs by now."""
    at = (slot * NUM_KV_HEADS + kv_head) * BM + row
    in_d = is_query[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(partial + at.to(tl.int64)[:, None] * HEAD_DIM + d[None, :], acc, mask=in_d)
    tl.store(largest + at, m, mask=is_query)
    tl.store(sums + at, total, mask=is_query)
    # all threads have stored before one of them says so
    tl.debug_barrier()
    counter = arrivals + (slot - part) * NUM_KV_HEADS + kv_head
    is_last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == num_parts - 1
    if is_last:
        tl.store(counter, 0)
    return is_last


@triton.jit
def _merge(
    partial, largest, sums, slot, num_parts, kv_head, row, is_query, d, NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):
    """The parts of a tile, whose slots begin at `slot`, in their order, whoever came last."""
    m = tl.full([BM], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, BD], dtype=tl.float32)
    in_d = is_query[:, None] & (d < HEAD_DIM)[None, :]
    for part in range(num_parts):
        at = ((slot + part) * NUM_KV_HEADS + kv_head) * BM + row
        m = tl.maximum(m, tl.load(largest + at, mask=is_query, other=float("-inf"), cache_modifier=".cg"))
    shift = tl.where(m == float("-inf"), 0.0, m)
    for part in tl.range(0, num_parts, loop_unroll_factor=4 if BM * BD <= 4096 else 1):
        at = ((slot + part) * NUM_KV_HEADS + kv_head) * BM + row
        factor = tl.exp2(tl.load(largest + at, mask=is_query, other=float("-inf"), cache_modifier=".cg") - shift)
        total += tl.load(sums + at, mask=is_query, other=0.0, cache_modifier=".cg") * factor
        of_part = partial + at.to(tl.int64)[:, None] * HEAD_DIM + d[None, :]
        acc += tl.load(of_part, mask=in_d, other=0.0, cache_modifier=".cg") * factor[:, None]
    return m, total, acc


@triton.jit
def _store(
    y, sinks, m, total, acc, out, head, is_query, d, HEAD_DIM: tl.constexpr, SINKS: tl.constexpr
):  # fmt: skip
    """A sink is one more score without a value; rows that saw nothing are zero."""
    if SINKS:
        sink = tl.load(sinks + head, mask=is_query, other=0.0) * 1.4426950408889634
        largest = tl.maximum(m, sink)
        factor = tl.exp2(m - largest)
        total = total * factor + tl.exp2(sink - largest)
        acc = acc * factor[:, None]
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(y + out[:, None] * HEAD_DIM + d[None, :], acc, mask=is_query[:, None] & (d < HEAD_DIM)[None, :])


@triton.jit
def _finish(
    y, sinks, partial, largest, sums, arrivals, m, total, acc, out, head, slot, part, num_parts, kv_head, row,
    is_query, d, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SINKS: tl.constexpr, BM: tl.constexpr,
    BD: tl.constexpr,
):
    """Store what there is of one part; of several, whoever comes last does."""
    if num_parts == 1:
        _store(y, sinks, m, total, acc, out, head, is_query, d, HEAD_DIM, SINKS)
    else:
        is_last = _leave_part(
            *(partial, largest, sums, arrivals, m, total, acc, slot, part, num_parts, kv_head, row, is_query, d),
            *(NUM_KV_HEADS, HEAD_DIM, BM),
        )
        if is_last:
            m, total, acc = _merge(
                *(partial, largest, sums, slot - part, num_parts, kv_head, row, is_query, d),
                *(NUM_KV_HEADS, HEAD_DIM, BM, BD),
            )
            _store(y, sinks, m, total, acc, out, head, is_query, d, HEAD_DIM, SINKS)


@triton.jit(do_not_specialize=["num_rows", "num_seqs", "width", "num_slots", "programs"])
def attention_tiles(
    q, kv, block_table, query_start_loc, seq_lens, sinks, slopes, y, partial, largest, sums, arrivals, fault,
    num_rows, num_seqs, width, num_slots, programs, sign, scale, softcap, BLOCK_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, SLOPES: tl.constexpr, MODE: tl.constexpr,
    SEQS: tl.constexpr, BQ: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
    LEAST_STEPS: tl.constexpr, PHASES: tl.constexpr,
):
    """BQ queries of one sequence with the GROUP heads of one KV head: BM >= BQ * GROUP rows of a product.

    q float32 [T, heads, HEAD_DIM] times `sign`; cache [2, slots, NUM_KV_HEADS, HEAD_DIM]; scale > 0. A tile of one part
    stores its rows of y. Of several, each leaves `partial` [slots, NUM_KV_HEADS, BM, HEAD_DIM] with `largest` and
    `sums` beside it and counts itself in `arrivals`; the last one merges them and leaves 0 there. PHASES takes keys
    that all queries see without masks.
    """
    seq, start, num_queries, length, first_query, part, per_part, slot = _find_item(
        *(query_start_loc, seq_lens, num_rows, num_seqs, tl.program_id(0), programs),
        *(SEQS, BQ, BK, LEAST_STEPS, WINDOW),
    )
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    if seq > num_seqs:
        return
    lowest, begin, end, num_parts = _find_keys(
        length, num_queries, first_query, part, per_part, WINDOW, CAUSAL, BQ, BK
    )
    if part >= num_parts:
        return
    kv_head = tl.program_id(1)
    row = tl.arange(0, BM)
    query = first_query + row // GROUP
    head = kv_head * GROUP + row % GROUP
    is_query = (row < BQ * GROUP) & (query < num_queries)
    position = length - num_queries + query
    d = tl.arange(0, BD)
    out = (start + query).to(tl.int64) * (NUM_KV_HEADS * GROUP) + head
    in_d = is_query[:, None] & (d < HEAD_DIM)[None, :]
    qs = operand(tl.load(q + out[:, None] * HEAD_DIM + d[None, :], mask=in_d, other=0.0) * sign, MODE)
    slope = tl.zeros([BM], dtype=tl.float32)
    if SLOPES:
        slope = tl.load(slopes + head, mask=is_query, other=0.0)
    m = tl.full([BM], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, BD], dtype=tl.float32)
    state = (m, total, acc)
    values = kv + num_slots.to(tl.int64) * (NUM_KV_HEADS * HEAD_DIM)
    table = block_table + seq.to(tl.int64) * width
    m, total, acc = _attend_part(
        *(state, qs, kv, values, table, slope, position, kv_head, begin, lowest, end, scale, softcap),
        *(length - num_queries + first_query, PHASES, BQ),
        *(BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM, WINDOW, CAUSAL, SOFTCAP, SLOPES, MODE, BK, BD),
    )
    _finish(
        *(y, sinks, partial, largest, sums, arrivals, m, total, acc, out, head, slot, part, num_parts, kv_head, row),
        *(is_query, d, NUM_KV_HEADS, HEAD_DIM, SINKS, BM, BD),
    )
