"""What contents of indices must hold, tested on the device before anything follows them into memory.

A fault is one int64, NO_FAULT or the smallest of: number of the rule << 52 | index << 32 | value (as 32 bits).
"""

import triton
import triton.language as tl

NO_FAULT = 0x7FFFFFFFFFFFFFFF


@triton.jit
def _record(fault, is_wrong, index, value, number):
    code = (number.to(tl.int64) << 52) | ((index.to(tl.int64) & 0xFFFFF) << 32) | (value.to(tl.int64) & 0xFFFFFFFF)
    first = tl.min(tl.where(is_wrong, code, 0x7FFFFFFFFFFFFFFF), axis=0)
    if first != 0x7FFFFFFFFFFFFFFF:
        tl.atomic_min(fault, first)


@triton.jit(do_not_specialize=["count", "number"])
def check_range(indices, count, lowest, past, number, fault, BLOCK: tl.constexpr):
    """lowest <= indices[i] < past."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(indices + at, mask=at < count, other=0)
    is_wrong = (at < count) & ((v < lowest) | (v >= past))
    _record(fault, is_wrong, at, v, tl.zeros_like(at) + number)


@triton.jit(do_not_specialize=["count", "other_count", "number"])
def check_apart(indices, count, others, other_count, number, fault, EARLIER: tl.constexpr, BLOCK: tl.constexpr):
    """No index from 0 on occurs among `others`; with EARLIER, among those before its own place."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(indices + at, mask=at < count, other=-1)
    repeats = at < 0
    for start in range(0, other_count, BLOCK):
        other_at = start + tl.arange(0, BLOCK)
        other = tl.load(others + other_at, mask=other_at < other_count, other=-2)
        same = v[:, None] == other[None, :]
        if EARLIER:
            same = same & (other_at[None, :] < at[:, None])
        repeats = repeats | (tl.max(same.to(tl.int32), axis=1) > 0)
    _record(fault, repeats & (v >= 0), at, v, tl.zeros_like(at) + number)


@triton.jit(do_not_specialize=["num_seqs", "num_rows", "width", "number"])
def check_sequences(
    query_start_loc, seq_lens, block_table, num_seqs, num_rows, width, num_blocks, number, fault,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, CAUSAL: tl.constexpr, SEQS: tl.constexpr, BP: tl.constexpr,
):
    """Borders (rule `number`), lengths (+ 1), lengths against queries (+ 2), blocks in use (+ 3)."""
    seq = tl.arange(0, SEQS)
    inside = seq < num_seqs
    start = tl.load(query_start_loc + seq, mask=inside, other=0)
    end = tl.load(query_start_loc + seq + 1, mask=inside, other=0)
    zero = tl.zeros_like(seq)
    bad_start = inside & (seq == 0) & (start != 0)
    _record(fault, bad_start, seq, start, zero + number)
    bad_border = inside & ((end < start) | (end > num_rows))
    _record(fault, bad_border, seq + 1, end, zero + number)
    length = tl.load(seq_lens + seq, mask=inside, other=0)
    bad_length = inside & ((length < 0) | (length > width * BLOCK_SIZE))
    _record(fault, bad_length, seq, length, zero + number + 1)
    bad_queries = zero > 0
    if CAUSAL:
        bad_queries = inside & (length < end - start)
        _record(fault, bad_queries, seq, length, zero + number + 2)
    is_sound = inside & (end > start) & (start >= 0)
    is_sound = is_sound & (bad_start.to(tl.int32) + bad_border.to(tl.int32) + bad_length.to(tl.int32) == 0)
    is_sound = is_sound & (bad_queries.to(tl.int32) == 0)
    first_key = zero
    if WINDOW > 0:
        first_key = tl.maximum(0, length - (end - start) - WINDOW + 1)
    last_block = tl.where(is_sound, tl.cdiv(length, BLOCK_SIZE), 0)
    # as far as blocks are in use: a table may have room for a context a hundred times as long
    for column in range(0, tl.minimum(width, tl.max(last_block, axis=0)), BP):
        p = column + tl.arange(0, BP)
        used = (p[None, :] >= (first_key // BLOCK_SIZE)[:, None]) & (p[None, :] < last_block[:, None])
        at = seq[:, None] * width + p[None, :]
        block = tl.load(block_table + at, mask=used, other=0)
        is_wrong = used & ((block < 0) | (block >= num_blocks))
        index = tl.reshape(at, [SEQS * BP])
        _record(fault, tl.reshape(is_wrong, [SEQS * BP]), index, tl.reshape(block, [SEQS * BP]), index * 0 + number + 3)
