"""Rotary embeddings alone, and in one pass with norms of heads and the writing of keys and values.

A program on a chip has heads of one token, so that sines and cosines are computed once for all of them.
"""

import triton
import triton.language as tl


@triton.jit
def _rotate_heads(
    source, target, gain, inv_freq, position, from_at, to_at, mask, eps, weight_offset, factor,
    HEAD_DIM: tl.constexpr, NUM_FREQS: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr, BF: tl.constexpr,
    BD: tl.constexpr, BT: tl.constexpr,
):
    """Heads at source + from_at [R], normalised where NORM, rotated, to target + to_at [R]; `mask` [R] says which."""
    f = tl.arange(0, BF)
    if INTERLEAVED:
        first = 2 * f
        second = 2 * f + 1
    else:
        first = f
        second = f + NUM_FREQS
    m = mask[:, None] & (f < NUM_FREQS)[None, :]
    a = tl.load(source + from_at[:, None] + first[None, :], mask=m, other=0.0)
    b = tl.load(source + from_at[:, None] + second[None, :], mask=m, other=0.0)
    freq = tl.load(inv_freq + f, mask=f < NUM_FREQS, other=0.0)
    if BT == 1:
        angle = (position.to(tl.float32) * freq)[None, :]
    else:
        angle = position.to(tl.float32)[:, None] * freq[None, :]
    cos = tl.cos(angle) * factor
    sin = tl.sin(angle) * factor
    if NORM or HEAD_DIM > 2 * NUM_FREQS:
        rest = 2 * NUM_FREQS + tl.arange(0, BD)
        m_rest = mask[:, None] & (rest < HEAD_DIM)[None, :]
        if HEAD_DIM > 2 * NUM_FREQS:
            c = tl.load(source + from_at[:, None] + rest[None, :], mask=m_rest, other=0.0)
        if NORM:
            squares = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)
            if HEAD_DIM > 2 * NUM_FREQS:
                squares += tl.sum(c * c, axis=1)
            inverse = (1.0 / tl.sqrt(squares / HEAD_DIM + eps))[:, None]
            in_f = f < NUM_FREQS
            a = a * inverse * (tl.load(gain + first, mask=in_f, other=0.0) + weight_offset)[None, :]
            b = b * inverse * (tl.load(gain + second, mask=in_f, other=0.0) + weight_offset)[None, :]
            if HEAD_DIM > 2 * NUM_FREQS:
                gain_rest = tl.load(gain + rest, mask=rest < HEAD_DIM, other=0.0) + weight_offset
                c = c * inverse * gain_rest[None, :]
        if HEAD_DIM > 2 * NUM_FREQS:
            tl.store(target + to_at[:, None] + rest[None, :], c.to(target.dtype.element_ty), mask=m_rest)
    tl.store(target + to_at[:, None] + first[None, :], (a * cos - b * sin).to(target.dtype.element_ty), mask=m)
    tl.store(target + to_at[:, None] + second[None, :], (b * cos + a * sin).to(target.dtype.element_ty), mask=m)


@triton.jit
def _find_heads(part, num_rows, num_heads, BR: tl.constexpr, BT: tl.constexpr):
    """Tokens and heads of a program, [BT * BR], and which of them exist; the token alone where it is one."""
    r = tl.arange(0, BT * BR)
    head = part * BR + r % BR
    if BT == 1:
        token = tl.program_id(0)
        mask = head < num_heads
    else:
        token = tl.program_id(0) * BT + r // BR
        mask = (head < num_heads) & (token < num_rows)
    return token, head, mask


@triton.jit
def _load_for(values, token, num_rows, BT: tl.constexpr):
    """What every token has one of."""
    if BT == 1:
        v = tl.load(values + token)
    else:
        v = tl.load(values + token, mask=token < num_rows, other=-1)
    return v


@triton.jit(do_not_specialize=["num_rows"])
def rope(
    x, positions, inv_freq, y, num_rows, num_heads, factor, HEAD_DIM: tl.constexpr, NUM_FREQS: tl.constexpr,
    INTERLEAVED: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):
    """y float32 [T, N]: BR heads (axis 1 of the grid) of BT tokens (axis 0)."""
    token, head, mask = _find_heads(tl.program_id(1), num_rows, num_heads, BR, BT)
    position = _load_for(positions, token, num_rows, BT)
    at = (token.to(tl.int64) * num_heads + head) * HEAD_DIM
    _rotate_heads(
        *(x, y, inv_freq, inv_freq, position, at, at, mask, 0.0, 0.0, factor),
        *(HEAD_DIM, NUM_FREQS, INTERLEAVED, False, BF, BD, BT),
    )


@triton.jit(do_not_specialize=["num_rows", "num_slots"])
def qkv_rope_write(
    q, k, v, positions, slot_mapping, inv_freq, q_gain, k_gain, y, kv, fault, num_rows, num_heads, num_kv_heads,
    num_slots, eps, weight_offset, factor, HEAD_DIM: tl.constexpr, NUM_FREQS: tl.constexpr, INTERLEAVED: tl.constexpr,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr, BF: tl.constexpr,
    BD: tl.constexpr, BLOCK: tl.constexpr,
):
    """BR heads (axis 1 of the grid) of BT tokens: queries to y, keys and values to their slots of the cache."""
    part = tl.program_id(1)
    of_queries, of_keys = tl.cdiv(num_heads, BR), tl.cdiv(num_kv_heads, BR)
    is_query = part < of_queries
    heads = tl.where(is_query, num_heads, num_kv_heads)
    of_kind = tl.where(is_query, part, (part - of_queries) % of_keys)
    token, head, mask = _find_heads(of_kind, num_rows, heads, BR, BT)
    position = _load_for(positions, token, num_rows, BT)
    slot = _load_for(slot_mapping, token, num_rows, BT)
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    at = (token.to(tl.int64) * heads + head) * HEAD_DIM
    to = (slot.to(tl.int64) * num_kv_heads + head) * HEAD_DIM
    is_kept = mask & (slot + tl.zeros_like(head) >= 0)
    if is_query:
        _rotate_heads(
            *(q, y, q_gain, inv_freq, position, at, at, mask, eps, weight_offset, factor),
            *(HEAD_DIM, NUM_FREQS, INTERLEAVED, Q_NORM, BF, BD, BT),
        )
    elif part < of_queries + of_keys:
        _rotate_heads(
            *(k, kv, k_gain, inv_freq, position, at, to, is_kept, eps, weight_offset, factor),
            *(HEAD_DIM, NUM_FREQS, INTERLEAVED, K_NORM, BF, BD, BT),
        )
    else:
        d = tl.arange(0, BLOCK)
        m = is_kept[:, None] & (d < HEAD_DIM)[None, :]
        data = tl.load(v + at[:, None] + d[None, :], mask=m, other=0.0)
        values = kv + num_slots.to(tl.int64) * num_kv_heads * HEAD_DIM
        tl.store(values + to[:, None] + d[None, :], data.to(kv.dtype.element_ty), mask=m)
