"""rms_norm and layer_norm, with the sum of a residual stream taken in passing."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_runs"])
def rms_norm(
    x, residual, weight, total, y, num_runs, size, eps, weight_offset, HAS_RESIDUAL: tl.constexpr, BR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BR runs of `size` elements each. With a residual, total = x + residual is stored and normalised."""
    runs = tl.program_id(0) * BR + tl.arange(0, BR)
    columns = tl.arange(0, BLOCK)
    mask = (runs < num_runs)[:, None] & (columns < size)[None, :]
    at = runs.to(tl.int64)[:, None] * size + columns[None, :]
    v = tl.load(x + at, mask=mask, other=0.0)
    if HAS_RESIDUAL:
        v += tl.load(residual + at, mask=mask, other=0.0)
        tl.store(total + at, v, mask=mask)
    mean_square = tl.sum(v * v, axis=1) / size
    gain = tl.load(weight + columns, mask=columns < size, other=0.0) + weight_offset
    tl.store(y + at, v * (1.0 / tl.sqrt(mean_square + eps))[:, None] * gain[None, :], mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def layer_norm(x, weight, bias, y, num_rows, size, eps, HAS_BIAS: tl.constexpr, BR: tl.constexpr, BLOCK: tl.constexpr):
    """BR rows of `size` elements each; the variance is that of centred values."""
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    columns = tl.arange(0, BLOCK)
    mask = (rows < num_rows)[:, None] & (columns < size)[None, :]
    at = rows.to(tl.int64)[:, None] * size + columns[None, :]
    v = tl.load(x + at, mask=mask, other=0.0)
    centred = tl.where(mask, v - (tl.sum(v, axis=1) / size)[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / size
    gain = tl.load(weight + columns, mask=columns < size, other=0.0)
    v = centred * (1.0 / tl.sqrt(variance + eps))[:, None] * gain[None, :]
    if HAS_BIAS:
        v += tl.load(bias + columns, mask=columns < size, other=0.0)[None, :]
    tl.store(y + at, v, mask=mask)
