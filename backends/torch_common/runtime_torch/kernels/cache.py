"""Rows into the KV cache, and whole blocks of it from place to place."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows", "num_slots"])
def kv_write(k, v, slot_mapping, kv, fault, num_rows, width, num_slots, BR: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of k and v (axis 1 of the grid) to their slots; the cache is [2, slots, width]."""
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    is_value = tl.program_id(1)
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    columns = tl.arange(0, BLOCK)
    slots = tl.load(slot_mapping + rows, mask=rows < num_rows, other=-1)
    mask = ((rows < num_rows) & (slots >= 0))[:, None] & (columns < width)[None, :]
    at = rows.to(tl.int64)[:, None] * width + columns[None, :]
    to = (slots.to(tl.int64) + is_value.to(tl.int64) * num_slots)[:, None] * width + columns[None, :]
    if is_value == 0:
        data = tl.load(k + at, mask=mask, other=0.0)
    else:
        data = tl.load(v + at, mask=mask, other=0.0)
    tl.store(kv + to, data.to(kv.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["from_half", "to_half"])
def move_blocks(
    source, target, source_ids, target_ids, fault, from_half, to_half, block_elements, HAS_SOURCE_IDS: tl.constexpr,
    HAS_TARGET_IDS: tl.constexpr, BLOCK: tl.constexpr,
):
    """Block source_ids[i] of half h (axes 0 and 1 of the grid) to target_ids[i]; without ids, block i.

    A half (keys, values) of the source has from_half elements, one of the target to_half.
    """
    if tl.load(fault) != 0x7FFFFFFFFFFFFFFF:
        return
    i = tl.program_id(0)
    half = tl.program_id(1).to(tl.int64)
    from_block = i
    to_block = i
    if HAS_SOURCE_IDS:
        from_block = tl.load(source_ids + i)
    if HAS_TARGET_IDS:
        to_block = tl.load(target_ids + i)
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = at < block_elements
    v = tl.load(source + half * from_half + from_block.to(tl.int64) * block_elements + at, mask=mask, other=0)
    to = half * to_half + to_block.to(tl.int64) * block_elements + at
    tl.store(target + to, v.to(target.dtype.element_ty), mask=mask)
