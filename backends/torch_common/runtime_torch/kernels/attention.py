"""Attention over a paged cache for ragged batches: tiles of queries and grouped heads, split over keys if few."""

import triton
import triton.language as tl

from runtime_torch.kernels.blocks import operand
from runtime_torch.kernels.functions import tanh


@triton.jit
def _with_sink(m, total, sink):
    """A sink is one more score without a value: the factor of the accumulator, and the sum with its share."""
    largest = tl.maximum(m, sink)
    factor = tl.exp(m - largest)
    return factor, total * factor + tl.exp(sink - largest)


@triton.jit(do_not_specialize=["num_rows", "num_seqs", "width", "num_slots"])
def attention_tiles(
    q,
    kv,
    block_table,
    query_start_loc,
    seq_lens,
    sinks,
    slopes,
    y,
    largest,
    sums,
    fault,
    num_rows,
    num_seqs,
    width,
    num_slots,
    scale,
    softcap,
    BLOCK_SIZE: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    SLOPES: tl.constexpr,
    SPLITS: tl.constexpr,
    MODE: tl.constexpr,
    SEQS: tl.constexpr,
    BQ: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
):
    """BQ queries of one sequence with the GROUP heads of one KV head: BM >= BQ * GROUP rows of a product.

    q float32 [T, heads, HEAD_DIM]; cache [2, slots, NUM_KV_HEADS, HEAD_DIM]. With SPLITS > 1, program_id(2) takes its
    part of the keys and leaves y [SPLITS, T, heads, HEAD_DIM] unnormalised with `largest` and `sums` [SPLITS, T, heads].

    The tile that program_id(0) stands for is found from the borders: sequence s begins at tile start // BQ + s.
    """
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    seqs = tl.arange(0, SEQS)
    starts = tl.load(query_start_loc + seqs, mask=seqs < num_seqs, other=0)
    begins = tl.where(seqs < num_seqs, starts // BQ + seqs, 0x7FFFFFFF)
    seq = tl.sum((begins <= tile).to(tl.int32), axis=0) - 1
    start = tl.load(query_start_loc + seq)
    num_queries = tl.load(query_start_loc + seq + 1) - start
    first_query = (tile - (start // BQ + seq)) * BQ
    if first_query >= num_queries:
        return
    length = tl.load(seq_lens + seq)
    row = tl.arange(0, BM)
    query = first_query + row // GROUP
    head = kv_head * GROUP + row % GROUP
    is_query = (row < BQ * GROUP) & (query < num_queries)
    position = length - num_queries + query
    d = tl.arange(0, BD)
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    out = (start + query).to(tl.int64) * NUM_HEADS + head
    in_d = is_query[:, None] & (d < HEAD_DIM)[None, :]
    qs = tl.load(q + out[:, None] * HEAD_DIM + d[None, :], mask=in_d, other=0.0)
    qs = operand(qs, MODE)
    m = tl.full([BM], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    if SLOPES:
        slope = tl.load(slopes + head, mask=is_query, other=0.0)
    acc = tl.zeros([BM, BD], dtype=tl.float32)
    end = length
    if CAUSAL:
        end = tl.minimum(length, length - num_queries + first_query + BQ)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(0, length - num_queries + first_query - WINDOW + 1)
        begin = begin // BK * BK
    per_split = tl.cdiv(tl.cdiv(end - begin, BK), SPLITS) * BK
    begin += split * per_split
    end = tl.minimum(end, begin + per_split)
    values = kv + num_slots.to(tl.int64) * NUM_KV_HEADS * HEAD_DIM
    for key in range(begin, end, BK):
        keys = key + tl.arange(0, BK)
        in_keys = keys < end
        block = tl.load(block_table + seq * width + keys // BLOCK_SIZE, mask=in_keys, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + keys % BLOCK_SIZE
        at = (slot * NUM_KV_HEADS + kv_head) * HEAD_DIM
        in_k = in_keys[:, None] & (d < HEAD_DIM)[None, :]
        ks = tl.load(kv + at[:, None] + d[None, :], mask=in_k, other=0.0)
        vs = tl.load(values + at[:, None] + d[None, :], mask=in_k, other=0.0)
        if MODE == 0 or MODE > 2:
            ks = ks.to(tl.float32)
            vs = vs.to(tl.float32)
        scores = tl.dot(qs, tl.trans(ks), input_precision="ieee") * scale
        if SOFTCAP:
            scores = tanh(scores / softcap) * softcap
        distance = position[:, None] - keys[None, :]
        if SLOPES:
            scores -= slope[:, None] * distance.to(tl.float32)
        visible = in_keys[None, :] & is_query[:, None]
        if CAUSAL:
            visible = visible & (distance >= 0)
        if WINDOW > 0:
            visible = visible & (distance < WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
        m_new = tl.maximum(m, tl.max(scores, axis=1))
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp(scores - shift[:, None])
        factor = tl.exp(m - shift)
        total = total * factor + tl.sum(p, axis=1)
        acc = tl.dot(operand(p, MODE), vs, acc * factor[:, None], input_precision="ieee")
        m = m_new
    if SPLITS == 1:
        if SINKS:
            sink = tl.load(sinks + head, mask=is_query, other=0.0)
            factor, total = _with_sink(m, total, sink)
            acc = acc * factor[:, None]
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(y + out[:, None] * HEAD_DIM + d[None, :], acc, mask=in_d)
    else:
        out += split.to(tl.int64) * num_rows * NUM_HEADS
        tl.store(y + out[:, None] * HEAD_DIM + d[None, :], acc, mask=in_d)
        tl.store(largest + out, m, mask=is_query)
        tl.store(sums + out, total, mask=is_query)


@triton.jit(do_not_specialize=["num_rows"])
def attention_merge(
    partial,
    largest,
    sums,
    sinks,
    y,
    num_rows,
    num_heads,
    HEAD_DIM: tl.constexpr,
    SINKS: tl.constexpr,
    SPLITS: tl.constexpr,
    BR: tl.constexpr,
    BD: tl.constexpr,
):
    """The splits of `num_rows` (query, head) rows into one, in a fixed order; a row that no tile has written is zero."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    d = tl.arange(0, BD)
    in_rows = rows < num_rows
    in_d = in_rows[:, None] & (d < HEAD_DIM)[None, :]
    m = tl.full([BR], float("-inf"), dtype=tl.float32)
    for split in range(SPLITS):
        m = tl.maximum(m, tl.load(largest + split * num_rows + rows, mask=in_rows, other=float("-inf")))
    shift = tl.where(m == float("-inf"), 0.0, m)
    acc = tl.zeros([BR, BD], dtype=tl.float32)
    total = tl.zeros([BR], dtype=tl.float32)
    for split in range(SPLITS):
        m_split = tl.load(largest + split * num_rows + rows, mask=in_rows, other=float("-inf"))
        factor = tl.exp(m_split - shift)
        has_part = m_split > float("-inf")
        at = (split * num_rows + rows).to(tl.int64)
        part = tl.load(partial + at[:, None] * HEAD_DIM + d[None, :], mask=in_d & has_part[:, None], other=0.0)
        acc += part * factor[:, None]
        total += tl.load(sums + at, mask=in_rows & has_part, other=0.0) * factor
    if SINKS:
        factor, total = _with_sink(m, total, tl.load(sinks + rows % num_heads, mask=in_rows, other=0.0))
        acc = acc * factor[:, None]
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(y + rows.to(tl.int64)[:, None] * HEAD_DIM + d[None, :], acc, mask=in_d)
