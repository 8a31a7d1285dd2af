"""Rows picked out, searched for their largest element, and turned into probabilities."""

import triton
import triton.language as tl


@triton.jit
def gather_rows(x, rows, y, num_rows, size, num_from, BLOCK: tl.constexpr):
    """y [num_rows, size] = x[rows]; a wrong index was recorded by a check and reads some row."""
    row = tl.program_id(0)
    index = tl.minimum(tl.maximum(tl.load(rows + row), 0), num_from - 1)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + index.to(tl.int64) * size + at, mask=at < size, other=0.0)
    tl.store(y + row.to(tl.int64) * size + at, v, mask=at < size)


@triton.jit
def _first_largest(values, places):
    """The largest of `values` and the smallest of `places` that holds it."""
    largest = tl.max(values, axis=0)
    return largest, tl.min(tl.where(values == largest, places, 0x7FFFFFFF), axis=0)


@triton.jit
def argmax(x, y, largest, places, arrivals, size, parts, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """y int32 [rows]: the first of the largest of `size` elements, NaN being -inf; a row has `parts` programs (axis 1).

    Each leaves what it found in `largest` and `places` [rows, parts] and counts itself in `arrivals`; the last one
    looks through them and leaves 0 there.
    """
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + row.to(tl.int64) * size + at, mask=at < size, other=float("-inf"))
    v = tl.where((at < size) & (v == v), v, float("-inf"))
    # what lies behind the row is as small as anything in it, but never the first
    most, place = _first_largest(v, tl.where(at < size, at, 0x7FFFFFFE))
    if parts == 1:
        tl.store(y + row, place)
    else:
        tl.store(largest + row * parts + tl.program_id(1), most)
        tl.store(places + row * parts + tl.program_id(1), place)
        tl.debug_barrier()
        if tl.atomic_add(arrivals + row, 1, sem="acq_rel", scope="gpu") == parts - 1:
            tl.store(arrivals + row, 0)
            part = tl.arange(0, PARTS)
            inside = part < parts
            m = tl.load(largest + row * parts + part, mask=inside, other=float("-inf"), cache_modifier=".cg")
            p = tl.load(places + row * parts + part, mask=inside, other=0x7FFFFFFE, cache_modifier=".cg")
            most, place = _first_largest(m, p)
            tl.store(y + row, place)


@triton.jit
def softmax(x, y, size, scale, LOG: tl.constexpr, BLOCK: tl.constexpr):
    """A row of scale x per program; one of nothing but -inf has no probability."""
    source = x + tl.program_id(0).to(tl.int64) * size
    target = y + tl.program_id(0).to(tl.int64) * size
    places = tl.arange(0, BLOCK)
    most = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    for start in range(0, size, BLOCK):
        at = start + places
        v = tl.load(source + at, mask=at < size, other=float("-inf")) * scale
        most = tl.maximum(most, tl.where(at < size, v, float("-inf")))
    shift = tl.max(most, axis=0)
    shift = tl.where(shift == float("-inf"), 0.0, shift)
    sums = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, size, BLOCK):
        at = start + places
        v = tl.load(source + at, mask=at < size, other=0.0) * scale - shift
        sums += tl.where(at < size, tl.exp(v), 0.0)
    total = tl.sum(sums, axis=0)
    total = tl.where(total == 0.0, 1.0, total)
    for start in range(0, size, BLOCK):
        at = start + places
        v = tl.load(source + at, mask=at < size, other=0.0) * scale - shift
        if LOG:
            v = v - tl.log(total)
        else:
            v = tl.exp(v) / total
        tl.store(target + at, v, mask=at < size)
