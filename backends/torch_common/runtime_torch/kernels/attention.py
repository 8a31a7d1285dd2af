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


@triton.jit
def _find_tile(query_start_loc, num_seqs, tile, SEQS: tl.constexpr, BQ: tl.constexpr):
    """Of a tile: its sequence, the sequence's first row, its number of queries, and the first of them in the tile.

    Sequence s begins at tile start // BQ + s, so that no list of tiles is needed.
    """
    seqs = tl.arange(0, SEQS)
    starts = tl.load(query_start_loc + seqs, mask=seqs < num_seqs, other=0)
    begins = tl.where(seqs < num_seqs, starts // BQ + seqs, 0x7FFFFFFF)
    seq = tl.sum((begins <= tile).to(tl.int32), axis=0) - 1
    start = tl.load(query_start_loc + seq)
    num_queries = tl.load(query_start_loc + seq + 1) - start
    return seq, start, num_queries, (tile - (start // BQ + seq)) * BQ


@triton.jit
def _find_keys(
    length, num_queries, first_query, split, WINDOW: tl.constexpr, CAUSAL: tl.constexpr, SPLITS: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr,
):
    """The keys that a tile's queries can see, and of these the part of one split, in whole steps of BK."""
    end = length
    if CAUSAL:
        end = tl.minimum(length, length - num_queries + first_query + BQ)
    begin = length * 0
    if WINDOW > 0:
        begin = tl.maximum(0, length - num_queries + first_query - WINDOW + 1) // BK * BK
    per_split = tl.cdiv(tl.cdiv(end - begin, BK), SPLITS) * BK
    begin += split * per_split
    return begin, tl.minimum(end, begin + per_split)


@triton.jit
def _load_pair(keys, values, at, mask, MODE: tl.constexpr):
    """Keys and values as operands: as they are stored, or widened."""
    k = tl.load(keys + at, mask=mask, other=0.0)
    v = tl.load(values + at, mask=mask, other=0.0)
    if MODE == 0 or MODE > 2:
        k = k.to(tl.float32)
        v = v.to(tl.float32)
    return k, v


@triton.jit
def _accumulate(scores, m, total):
    """Weights of new scores under the new largest one, the factor of what was summed before, and both sums."""
    largest = tl.maximum(m, tl.max(scores, axis=1))
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    p = tl.exp(scores - shift[:, None])
    factor = tl.exp(m - shift)
    return p, factor, largest, total * factor + tl.sum(p, axis=1)


@triton.jit
def _hide(scores, visible, distance, WINDOW: tl.constexpr, CAUSAL: tl.constexpr):
    """-inf where a query does not see a key; `distance` is the query's position less the key's."""
    if CAUSAL:
        visible = visible & (distance >= 0)
    if WINDOW > 0:
        visible = visible & (distance < WINDOW)
    return tl.where(visible, scores, float("-inf"))


@triton.jit
def _store(
    y, largest, sums, sinks, acc, m, total, out, head, d, is_query, in_d, split_at, HEAD_DIM: tl.constexpr,
    SINKS: tl.constexpr, SPLITS: tl.constexpr,
):
    """The result of a tile, or what `attention_merge` needs of a split."""
    if SPLITS == 1:
        if SINKS:
            factor, total = _with_sink(m, total, tl.load(sinks + head, mask=is_query, other=0.0))
            acc = acc * factor[:, None]
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(y + out[:, None] * HEAD_DIM + d[None, :], acc, mask=in_d)
    else:
        at = out + split_at
        tl.store(y + at[:, None] * HEAD_DIM + d[None, :], acc, mask=in_d)
        tl.store(largest + at, m, mask=is_query)
        tl.store(sums + at, total, mask=is_query)


@triton.jit(do_not_specialize=["num_rows", "num_seqs", "width", "num_slots"])
def attention_tiles(
    q, kv, block_table, query_start_loc, seq_lens, sinks, slopes, y, largest, sums, fault, num_rows, num_seqs, width,
    num_slots, scale, softcap, BLOCK_SIZE: tl.constexpr, NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    SLOPES: tl.constexpr, SPLITS: tl.constexpr, MODE: tl.constexpr, SEQS: tl.constexpr, BQ: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):
    """BQ queries of one sequence with the GROUP heads of one KV head: BM >= BQ * GROUP rows of a product.

    q float32 [T, heads, HEAD_DIM]; cache [2, slots, NUM_KV_HEADS, HEAD_DIM]. With SPLITS > 1, program_id(2) takes its
    part of the keys and leaves y [SPLITS, T, heads, HEAD_DIM] unnormalised, with `largest` and `sums`
    [SPLITS, T, heads] beside it.
    """
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    seq, start, num_queries, first_query = _find_tile(query_start_loc, num_seqs, tile, SEQS, BQ)
    if first_query >= num_queries:
        return
    length = tl.load(seq_lens + seq)
    row = tl.arange(0, BM)
    query = first_query + row // GROUP
    head = kv_head * GROUP + row % GROUP
    is_query = (row < BQ * GROUP) & (query < num_queries)
    position = length - num_queries + query
    d = tl.arange(0, BD)
    out = (start + query).to(tl.int64) * (NUM_KV_HEADS * GROUP) + head
    in_d = is_query[:, None] & (d < HEAD_DIM)[None, :]
    qs = tl.load(q + out[:, None] * HEAD_DIM + d[None, :], mask=in_d, other=0.0)
    qs = operand(qs, MODE)
    m = tl.full([BM], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, BD], dtype=tl.float32)
    begin, end = _find_keys(length, num_queries, first_query, split, WINDOW, CAUSAL, SPLITS, BQ, BK)
    values = kv + num_slots.to(tl.int64) * NUM_KV_HEADS * HEAD_DIM
    for key in range(begin, end, BK):
        keys = key + tl.arange(0, BK)
        in_keys = keys < end
        block = tl.load(block_table + seq * width + keys // BLOCK_SIZE, mask=in_keys, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + keys % BLOCK_SIZE
        at = (slot * NUM_KV_HEADS + kv_head) * HEAD_DIM
        in_k = in_keys[:, None] & (d < HEAD_DIM)[None, :]
        ks, vs = _load_pair(kv, values, at[:, None] + d[None, :], in_k, MODE)
        scores = tl.dot(qs, tl.trans(ks), input_precision="ieee") * scale
        visible = in_keys[None, :] & is_query[:, None]
        distance = position[:, None] - keys[None, :]
        if SOFTCAP:
            scores = tanh(scores / softcap) * softcap
        if SLOPES:
            scores -= tl.load(slopes + head, mask=is_query, other=0.0)[:, None] * distance.to(tl.float32)
        scores = _hide(scores, visible, distance, WINDOW, CAUSAL)
        p, factor, m, total = _accumulate(scores, m, total)
        acc = tl.dot(operand(p, MODE), vs, acc * factor[:, None], input_precision="ieee")
    split_at = split.to(tl.int64) * num_rows * (NUM_KV_HEADS * GROUP)
    _store(
        *(y, largest, sums, sinks, acc, m, total, out, head, d, is_query, in_d, split_at),
        *(HEAD_DIM, SINKS, SPLITS),
    )


@triton.jit(do_not_specialize=["num_rows"])
def attention_merge(
    partial, largest, sums, sinks, y, num_rows, num_heads, HEAD_DIM: tl.constexpr, SINKS: tl.constexpr,
    SPLITS: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):
    """The splits of `num_rows` (query, head) rows into one, in a fixed order; a row that no tile wrote is zero."""
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
