"""Gated activations, and step inputs copied into the shape of a bucket."""

import triton
import triton.language as tl

from runtime_torch.kernels.functions import sigmoid, tanh

SILU, GELU, GELU_TANH, QUICK_GELU, SWIGLU_OAI, SIGMOID, TANH = 0, 1, 2, 3, 4, 5, 6


@triton.jit
def _nonlinear(x, KIND: tl.constexpr):
    if KIND == 0:
        y = x * sigmoid(x)
    elif KIND == 1:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == 2:
        # (1 + tanh z) / 2 is the sigmoid of 2 z
        y = x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == 3:
        y = x * sigmoid(1.702 * x)
    elif KIND == 5:
        y = sigmoid(x)
    else:
        y = tanh(x)
    return y


@triton.jit
def activation(x, y, size, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """y = kind(x), elementwise over `size` float32 elements."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + at, mask=at < size, other=0.0)
    tl.store(y + at, _nonlinear(v, KIND), mask=at < size)


@triton.jit
def gated(g, u, alpha, limit, KIND: tl.constexpr):
    """kind(g) * u."""
    if KIND == 4:
        # NaN in `g` stays: a comparison with it is false
        g = tl.where(g > limit, limit, g)
        u = tl.where(u > limit, limit, tl.where(u < -limit, -limit, u))
        v = g * sigmoid(alpha * g) * (u + 1.0)
    else:
        v = _nonlinear(g, KIND) * u
    return v


@triton.jit
def glu(gate, up, y, size, alpha, limit, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """y = kind(gate) * up, elementwise over `size` float32 elements."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + at, mask=at < size, other=0.0)
    u = tl.load(up + at, mask=at < size, other=0.0)
    tl.store(y + at, gated(g, u, alpha, limit, KIND), mask=at < size)


@triton.jit(do_not_specialize=["fill", "inner_at", "inner"])
def stage(
    source, target, sizes, outer_at, inner_at, inner, num_outer, num_inner, fill, REPEAT_LAST: tl.constexpr,
    BO: tl.constexpr, BI: tl.constexpr,
):
    """A compact [sizes[outer_at], sizes[inner_at] or inner] array into [num_outer, num_inner], padded.

    The true sizes are data on the device, so that a captured step serves every batch of its bucket.
    """
    rows = tl.load(sizes + outer_at)
    columns = inner
    if inner_at >= 0:
        columns = tl.load(sizes + inner_at)
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    from_row = o
    if REPEAT_LAST:
        from_row = tl.minimum(o, rows - 1)
    inside = (from_row < rows)[:, None] & (i < columns)[None, :]
    at = from_row.to(tl.int64)[:, None] * columns + i[None, :]
    v = tl.load(source + at, mask=inside, other=0)
    v = tl.where(inside, v, fill.to(v.dtype))
    to = o.to(tl.int64)[:, None] * num_inner + i[None, :]
    tl.store(target + to, v, mask=(o < num_outer)[:, None] & (i < num_inner)[None, :])
