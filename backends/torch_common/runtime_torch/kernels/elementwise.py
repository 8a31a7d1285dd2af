"""Gated activations, and step inputs in the shape of a bucket."""

import triton
import triton.language as tl

from runtime_torch.kernels.functions import sigmoid, tanh

SILU, GELU, GELU_TANH, QUICK_GELU, SWIGLU_OAI, SIGMOID, TANH, RELU, RELU2 = range(9)


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
    elif KIND == 7:
        y = tl.where(x < 0.0, 0.0, x)
    elif KIND == 8:
        y = tl.where(x < 0.0, 0.0, x * x)
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
def softcap(x, y, size, cap, BLOCK: tl.constexpr):
    """y = cap tanh(x / cap), elementwise."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + at, mask=at < size, other=0.0)
    tl.store(y + at, tanh(v / cap) * cap, mask=at < size)


@triton.jit
def product(a, b, y, size, scale, BLOCK: tl.constexpr):
    """y = a b scale, elementwise."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(a + at, mask=at < size, other=0.0) * tl.load(b + at, mask=at < size, other=0.0)
    tl.store(y + at, v * scale, mask=at < size)


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


@triton.jit
def unpack(packed, staged, fault, BLOCK: tl.constexpr):
    """Inputs of a step into the sizes of its bucket; the fault record is cleared.

    `packed` int32 begins with 8 words for each input (axis 1 of the grid): where it begins, its rows and columns, where
    it goes in `staged`, rows and columns there, what rows beyond hold, and whether they repeat the last one instead.
    The true sizes are data, so that a captured step serves every batch of its bucket.
    """
    if tl.program_id(0) + tl.program_id(1) == 0:
        tl.store(fault, 0x7FFFFFFFFFFFFFFF)
    entry = packed + tl.program_id(1) * 8
    rows, columns = tl.load(entry + 1), tl.load(entry + 2)
    source, target = packed + tl.load(entry), staged + tl.load(entry + 3)
    num_rows, num_columns = tl.load(entry + 4), tl.load(entry + 5)
    fill, repeats = tl.load(entry + 6), tl.load(entry + 7)
    written = tl.where(fill != 0, num_columns, columns)
    size = num_rows * written
    for start in range(tl.program_id(0) * BLOCK, size, tl.num_programs(0) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        row, column = at // written, at % written
        from_row = tl.where(repeats != 0, tl.minimum(row, rows - 1), row)
        inside = (at < size) & (from_row < rows) & (column < columns)
        v = tl.load(source + from_row * columns + column, mask=inside, other=0)
        tl.store(target + row.to(tl.int64) * num_columns + column, tl.where(inside, v, fill), mask=at < size)
