"""Rotary embeddings alone, and in one pass with norms of heads and the writing of keys and values."""

import triton
import triton.language as tl


@triton.jit
def _rotate_heads(
    source, target, gain, inv_freq, position, from_at, to_at, mask, eps, weight_offset, factor,
    HEAD_DIM: tl.constexpr, NUM_FREQS: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr, BF: tl.constexpr,
    BD: tl.constexpr,
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
    rest = 2 * NUM_FREQS + tl.arange(0, BD)
    m_rest = mask[:, None] & (rest < HEAD_DIM)[None, :]
    if NORM or HEAD_DIM > 2 * NUM_FREQS:
        c = tl.load(source + from_at[:, None] + rest[None, :], mask=m_rest, other=0.0)
        if NORM:
            squares = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1) + tl.sum(c * c, axis=1)
            root = tl.sqrt(squares / HEAD_DIM + eps)[:, None]
            in_f = f < NUM_FREQS
            a = a / root * (tl.load(gain + first, mask=in_f, other=0.0) + weight_offset)[None, :]
            b = b / root * (tl.load(gain + second, mask=in_f, other=0.0) + weight_offset)[None, :]
            gain_rest = tl.load(gain + rest, mask=rest < HEAD_DIM, other=0.0) + weight_offset
            c = c / root * gain_rest[None, :]
        tl.store(target + to_at[:, None] + rest[None, :], c.to(target.dtype.element_ty), mask=m_rest)
    freq = tl.load(inv_freq + f, mask=f < NUM_FREQS, other=0.0)
    angle = position.to(tl.float32)[:, None] * freq[None, :]
    cos = tl.cos(angle) * factor
    sin = tl.sin(angle) * factor
    tl.store(target + to_at[:, None] + first[None, :], (a * cos - b * sin).to(target.dtype.element_ty), mask=m)
    tl.store(target + to_at[:, None] + second[None, :], (b * cos + a * sin).to(target.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["num_rows"])
def rope(
    x, positions, inv_freq, y, num_rows, num_heads, factor, HEAD_DIM: tl.constexpr, NUM_FREQS: tl.constexpr,
    INTERLEAVED: tl.constexpr, BR: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
):
    """y float32 [T, N]: BR heads per program."""
    head = tl.program_id(0) * BR + tl.arange(0, BR)
    mask = head < num_rows * num_heads
    position = tl.load(positions + head // num_heads, mask=mask, other=0)
    at = head.to(tl.int64) * HEAD_DIM
    _rotate_heads(
        *(x, y, inv_freq, inv_freq, position, at, at, mask, 0.0, 0.0, factor),
        *(HEAD_DIM, NUM_FREQS, INTERLEAVED, False, BF, BD),
    )


@triton.jit(do_not_specialize=["num_rows", "num_slots"])
def qkv_rope_write(
    q, k, v, positions, slot_mapping, inv_freq, q_gain, k_gain, y, kv, fault, num_rows, num_heads, num_kv_heads,
    num_slots, eps, weight_offset, factor, HEAD_DIM: tl.constexpr, NUM_FREQS: tl.constexpr,
    INTERLEAVED: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr, BR: tl.constexpr, BF: tl.constexpr,
    BD: tl.constexpr, BLOCK: tl.constexpr,
):
    """Heads of queries (axis 1 of the grid: 0) to y, of keys (1) and values (2) to their slots."""
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    kind = tl.program_id(1)
    item = tl.program_id(0) * BR + tl.arange(0, BR)
    if kind == 0:
        mask = item < num_rows * num_heads
        position = tl.load(positions + item // num_heads, mask=mask, other=0)
        at = item.to(tl.int64) * HEAD_DIM
        _rotate_heads(
            *(q, y, q_gain, inv_freq, position, at, at, mask, eps, weight_offset, factor),
            *(HEAD_DIM, NUM_FREQS, INTERLEAVED, Q_NORM, BF, BD),
        )
    else:
        mask = item < num_rows * num_kv_heads
        row = item // num_kv_heads
        slot = tl.load(slot_mapping + row, mask=mask, other=-1)
        mask = mask & (slot >= 0)
        at = item.to(tl.int64) * HEAD_DIM
        to = (slot.to(tl.int64) * num_kv_heads + item % num_kv_heads) * HEAD_DIM
        if kind == 1:
            position = tl.load(positions + row, mask=mask, other=0)
            _rotate_heads(
                *(k, kv, k_gain, inv_freq, position, at, to, mask, eps, weight_offset, factor),
                *(HEAD_DIM, NUM_FREQS, INTERLEAVED, K_NORM, BF, BD),
            )
        else:
            d = tl.arange(0, BLOCK)
            m = mask[:, None] & (d < HEAD_DIM)[None, :]
            data = tl.load(v + at[:, None] + d[None, :], mask=m, other=0.0)
            values = kv + num_slots.to(tl.int64) * num_kv_heads * HEAD_DIM
            tl.store(values + to[:, None] + d[None, :], data.to(kv.dtype.element_ty), mask=m)
