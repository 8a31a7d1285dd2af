"""Operands of products: rows rounded to halves, under a power of two where f16 would not hold them."""

import triton
import triton.language as tl

from runtime_torch.kernels.elementwise import gated


@triton.jit
def power(exponent):
    """2 ** exponent for exponents of normal float32, -126 to 127, made of its bits."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def shift_of(largest, TOP: tl.constexpr):
    """The power of two that numbers up to `largest`, finite and not negative, are multiplied by: below 2^TOP then.

    Below 2^15, that is for sums in float32, numbers of ordinary size (from 2^-6) are left as they are: their sums need
    no scale, and what f16 cuts off below 2^-25 is less than a 2^19th of the largest.
    """
    bits = largest.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 126
    shift = tl.minimum(TOP - exponent, 126)
    if TOP == 15:
        shift = tl.where((exponent >= -5) & (exponent <= 15), 0, shift)
    return tl.where(bits == 0, 0, shift)


@triton.jit
def _read(x, up, at, mask, alpha, limit, KIND: tl.constexpr):
    v = tl.load(x + at, mask=mask, other=0.0)
    if KIND >= 0:
        v = gated(v, tl.load(up + at, mask=mask, other=0.0), alpha, limit, KIND)
    return v


@triton.jit
def _size(v):
    """|v| where it is finite: an infinity and a NaN come through whatever the scale."""
    return tl.where(tl.abs(v) < float("inf"), tl.abs(v), 0.0)


@triton.jit
def _place(column, stride, W: tl.constexpr):
    """Where a column lies among `PARTS` runs of `stride` elements: part p of all units is contiguous."""
    if W == 32:
        return column
    return (column % 32) // W * stride + column // 32 * W + column % W


@triton.jit(do_not_specialize=["num_rows", "alpha", "limit"])
def round_rows(
    x, up, y, exponents, num_rows, num_columns, stride, alpha, limit, KIND: tl.constexpr, W: tl.constexpr,
    MODE: tl.constexpr, TOP: tl.constexpr, WHOLE: tl.constexpr, BR: tl.constexpr, BLOCK: tl.constexpr,
):
    """Rows of x float32 [T, K], or of kind(x) * up, as operands y [T, 32 // W, stride] of type MODE, zeros at the end.

    exponents int32 [T] is written where MODE is f16: a row is y 2^exponent. WHOLE: a program holds its rows; otherwise
    it reads them twice.
    """
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    column = tl.arange(0, BLOCK)
    is_row = (rows < num_rows)[:, None]
    base = rows.to(tl.int64)[:, None] * num_columns
    width = stride * (32 // W)
    out = rows.to(tl.int64)[:, None] * width
    if WHOLE:
        v = _read(x, up, base + column[None, :], is_row & (column < num_columns)[None, :], alpha, limit, KIND)
        if MODE == 2:
            shift = shift_of(tl.max(_size(v), axis=1), TOP)
            v = v * power(shift)[:, None]
            tl.store(exponents + rows, -shift, mask=rows < num_rows)
        at = out + _place(column, stride, W)[None, :]
        tl.store(y + at, v.to(y.dtype.element_ty), mask=is_row & (column < width)[None, :])
    else:
        factor = tl.full([BR], 1.0, dtype=tl.float32)
        if MODE == 2:
            largest = tl.zeros([BR, BLOCK], dtype=tl.float32)
            for start in range(0, num_columns, BLOCK):
                c = start + column
                v = _read(x, up, base + c[None, :], is_row & (c < num_columns)[None, :], alpha, limit, KIND)
                largest = tl.maximum(largest, _size(v))
            shift = shift_of(tl.max(largest, axis=1), TOP)
            factor = power(shift)
            tl.store(exponents + rows, -shift, mask=rows < num_rows)
        for start in range(0, width, BLOCK):
            c = start + column
            v = _read(x, up, base + c[None, :], is_row & (c < num_columns)[None, :], alpha, limit, KIND)
            at = out + _place(c, stride, W)[None, :]
            tl.store(y + at, (v * factor[:, None]).to(y.dtype.element_ty), mask=is_row & (c < width)[None, :])


@triton.jit
def unscaled(v, exponents, factors, HAS_FACTOR: tl.constexpr):
    """v 2^exponent / factor, for exponents of rows of x and factors of rows of the weight, broadcast to v.

    In two steps, as neither power need be a number that float32 holds; the first never rounds what the second keeps.
    """
    if HAS_FACTOR:
        total = exponents - ((factors.to(tl.int32, bitcast=True) >> 23) - 127)
        half = total >> 1
        v = v * power(half) * power(total - half)
    else:
        v = v * power(exponents)
    return v


@triton.jit(do_not_specialize=["num_tokens"])
def finish(
    made, exponents, factors, bias, y, num_tokens, num_rows, HAS_EXPONENT: tl.constexpr, HAS_FACTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr, IN_PLACE: tl.constexpr, BT: tl.constexpr, BLOCK: tl.constexpr,
):
    """y [T, N] float32 = made 2^exponent / factor + bias; `made` is y itself, or in halves.

    Rows that were not scaled are left alone, unread, where there is nothing else to do to them.
    """
    tokens = tl.program_id(0) * BT + tl.arange(0, BT)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (tokens < num_tokens)[:, None] & (rows < num_rows)[None, :]
    if HAS_EXPONENT:
        e = tl.load(exponents + tokens, mask=tokens < num_tokens, other=0)
        ONLY: tl.constexpr = IN_PLACE and not HAS_FACTOR and not HAS_BIAS
        if ONLY and tl.max(tl.abs(e), axis=0) == 0:
            return
    at = tokens.to(tl.int64)[:, None] * num_rows + rows[None, :]
    v = tl.load(made + at, mask=mask, other=0.0).to(tl.float32)
    if HAS_EXPONENT:
        f = e[None, :]
        if HAS_FACTOR:
            f = tl.load(factors + rows, mask=rows < num_rows, other=1.0)[None, :]
        v = unscaled(v, e[:, None], f, HAS_FACTOR)
    if HAS_BIAS:
        v += tl.load(bias + rows, mask=rows < num_rows, other=0.0)[None, :]
    tl.store(y + at, v, mask=mask)
