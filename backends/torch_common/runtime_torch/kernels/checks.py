"""What contents of indices must hold, tested on the device before anything follows them into memory.

A fault is one int64, NO_FAULT or the smallest of: number of the rule << 52 | index << 32 | value (as 32 bits).
"""

import triton
import triton.language as tl

NO_FAULT = 0x7FFFFFFFFFFFFFFF
RANGE, APART, SEQUENCES = 0, 1, 2
"""Kinds of rules."""
WORDS = 12
"""Of a rule: int64 of kind, number, and what the kind needs."""


@triton.jit
def _record(fault, is_wrong, index, value, number):
    code = (number.to(tl.int64) << 52) | ((index.to(tl.int64) & 0xFFFFF) << 32) | (value.to(tl.int64) & 0xFFFFFFFF)
    first = tl.min(tl.where(is_wrong, code, 0x7FFFFFFFFFFFFFFF), axis=0)
    if first != 0x7FFFFFFFFFFFFFFF:
        tl.atomic_min(fault, first)


@triton.jit
def _pointer(rule, place: tl.constexpr):
    return tl.load(rule + place).to(tl.pointer_type(tl.int32))


@triton.jit
def _number(rule, place: tl.constexpr):
    return tl.load(rule + place).to(tl.int32)


@triton.jit
def _check_range(rule, fault, BLOCK: tl.constexpr):
    """2 indices, 3 count, 4 lowest, 5 past: lowest <= indices[i] < past."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_index = at < _number(rule, 3)
    v = tl.load(_pointer(rule, 2) + at, mask=is_index, other=0)
    is_wrong = is_index & ((v < _number(rule, 4)) | (v >= _number(rule, 5)))
    _record(fault, is_wrong, at, v, _number(rule, 1))


@triton.jit
def _check_apart(rule, fault, BLOCK: tl.constexpr):
    """2 indices, 3 count, 4 others, 5 their count, 6 earlier: no index from 0 on is among others (before it)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(_pointer(rule, 2) + at, mask=at < _number(rule, 3), other=-1)
    others, other_count, earlier = _pointer(rule, 4), _number(rule, 5), _number(rule, 6)
    repeats = at < 0
    for start in range(0, other_count, BLOCK):
        other_at = start + tl.arange(0, BLOCK)
        other = tl.load(others + other_at, mask=other_at < other_count, other=-2)
        same = (v[:, None] == other[None, :]) & ((earlier == 0) | (other_at[None, :] < at[:, None]))
        repeats = repeats | (tl.max(same.to(tl.int32), axis=1) > 0)
    _record(fault, repeats & (v >= 0), at, v, _number(rule, 1))


@triton.jit
def _check_sequences(rule, fault, SEQS: tl.constexpr, BP: tl.constexpr):
    """Borders (rule `number`), lengths (+ 1), lengths against queries (+ 2), BP columns of blocks in use (+ 3).

    2 borders, 3 lengths, 4 table, 5 sequences, 6 rows, 7 columns of the table, 8 blocks, 9 their size, 10 window,
    11 causal.
    """
    query_start_loc, seq_lens, block_table = _pointer(rule, 2), _pointer(rule, 3), _pointer(rule, 4)
    num_seqs, width, block_size, window = _number(rule, 5), _number(rule, 7), _number(rule, 9), _number(rule, 10)
    number, is_causal = _number(rule, 1), _number(rule, 11) != 0
    seq = tl.arange(0, SEQS)
    inside = seq < num_seqs
    start = tl.load(query_start_loc + seq, mask=inside, other=0)
    end = tl.load(query_start_loc + seq + 1, mask=inside, other=0)
    length = tl.load(seq_lens + seq, mask=inside, other=0)
    bad_start = inside & (seq == 0) & (start != 0)
    bad_border = inside & ((end < start) | (end > _number(rule, 6)))
    bad_length = inside & ((length < 0) | (length > width * block_size))
    bad_queries = inside & is_causal & (length < end - start)
    if tl.program_id(0) == 0:
        _record(fault, bad_start, seq, start, number)
        _record(fault, bad_border, seq + 1, end, number)
        _record(fault, bad_length, seq, length, number + 1)
        _record(fault, bad_queries, seq, length, number + 2)
    is_wrong = bad_start.to(tl.int32) + bad_border.to(tl.int32) + bad_length.to(tl.int32) + bad_queries.to(tl.int32)
    is_sound = inside & (end > start) & (start >= 0) & (is_wrong == 0)
    first_key = tl.where(window > 0, tl.maximum(0, length - (end - start) - window + 1), 0)
    last_block = tl.where(is_sound, tl.cdiv(length, block_size), 0)
    # as far as blocks are in use: a table may have room for a context a hundred times as long
    used_columns = tl.minimum(width, tl.max(last_block, axis=0))
    for column in range(tl.program_id(0) * BP, used_columns, tl.num_programs(0) * BP):
        p = column + tl.arange(0, BP)
        used = (p[None, :] >= (first_key // block_size)[:, None]) & (p[None, :] < last_block[:, None])
        at = seq[:, None] * width + p[None, :]
        block = tl.load(block_table + at, mask=used, other=0)
        bad_block = used & ((block < 0) | (block >= _number(rule, 8)))
        index = tl.reshape(at, [SEQS * BP])
        _record(fault, tl.reshape(bad_block, [SEQS * BP]), index, tl.reshape(block, [SEQS * BP]), number + 3)


@triton.jit
def check(rules, fault, BLOCK: tl.constexpr, SEQS: tl.constexpr, BP: tl.constexpr):
    """All rules (axis 1 of the grid), int64 [rules, WORDS], over their indices (axis 0)."""
    rule = rules + tl.program_id(1) * 12
    kind = tl.load(rule)
    if kind == 0:
        _check_range(rule, fault, BLOCK)
    elif kind == 1:
        _check_apart(rule, fault, BLOCK)
    else:
        _check_sequences(rule, fault, SEQS, BP)
