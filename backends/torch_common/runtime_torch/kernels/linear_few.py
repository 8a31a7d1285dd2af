"""Products of one or two rows, which are bound by memory: one weight, or several in one launch."""

import triton
import triton.language as tl

from runtime_torch.kernels.dot_few import dot_few
from runtime_torch.kernels.elementwise import gated


@triton.jit
def linear_few(
    x, lo, hi, scale, above, low, low_above, table, bias, y, num_rows, K: tl.constexpr, TOKENS: tl.constexpr,
    LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr,
    MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, BN: tl.constexpr,
    BU: tl.constexpr,
):
    """y[t, n] for BN rows of the weight; x float32 [TOKENS, K], y float32 [TOKENS, num_rows]."""
    first = tl.program_id(0) * BN
    a, b = dot_few(
        *(x, lo, hi, scale, above, low, low_above, table, first.to(tl.int64), num_rows - first, K, TOKENS),
        *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, EVEN, BN, BU),
    )
    rows = first + tl.arange(0, BN)
    mask = rows < num_rows
    if HAS_BIAS:
        added = tl.load(bias + rows, mask=mask, other=0.0)
        a += added
        b += added
    tl.store(y + rows, a, mask=mask)
    if TOKENS == 2:
        tl.store(y + num_rows + rows, b, mask=mask)


@triton.jit
def _one_of(index, a, b, c):
    if index == 0:
        chosen = a
    elif index == 1:
        chosen = b
    else:
        chosen = c
    return chosen


@triton.jit
def linear_few_of_three(
    x, lo, hi, scale, above, low, low_above, lo_1, hi_1, scale_1, above_1, low_1, low_above_1, lo_2, hi_2, scale_2,
    above_2, low_2, low_above_2, table, bias, bias_1, bias_2, y, y_1, y_2, num_rows, num_rows_1, num_rows_2,
    K: tl.constexpr, TOKENS: tl.constexpr, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr, OFFSET: tl.constexpr,
    GROUPS: tl.constexpr, SCALE: tl.constexpr, MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr, HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):
    """Three products of one x with weights of one format: programs of the first, then of the second and the third."""
    program = tl.program_id(0)
    second = tl.cdiv(num_rows, BN)
    third = second + tl.cdiv(num_rows_1, BN)
    index = (program >= second).to(tl.int32) + (program >= third).to(tl.int32)
    first = (program - _one_of(index, 0, second, third)) * BN
    rows_of = _one_of(index, num_rows, num_rows_1, num_rows_2)
    a, b = dot_few(
        *(x, _one_of(index, lo, lo_1, lo_2), _one_of(index, hi, hi_1, hi_2), _one_of(index, scale, scale_1, scale_2)),
        *(_one_of(index, above, above_1, above_2), _one_of(index, low, low_1, low_2)),
        *(_one_of(index, low_above, low_above_1, low_above_2), table, first.to(tl.int64), rows_of - first, K, TOKENS),
        *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, EVEN, BN, BU),
    )
    rows = first + tl.arange(0, BN)
    mask = rows < rows_of
    if HAS_BIAS:
        added = tl.load(_one_of(index, bias, bias_1, bias_2) + rows, mask=mask, other=0.0)
        a += added
        b += added
    out = _one_of(index, y, y_1, y_2)
    tl.store(out + rows, a, mask=mask)
    if TOKENS == 2:
        tl.store(out + rows_of + rows, b, mask=mask)


@triton.jit
def gate_up_few(
    x, lo, hi, scale, above, low, low_above, lo_1, hi_1, scale_1, above_1, low_1, low_above_1, table, bias, bias_1, y,
    num_rows, alpha, limit, K: tl.constexpr, TOKENS: tl.constexpr, LO_BITS: tl.constexpr, HI_BITS: tl.constexpr,
    OFFSET: tl.constexpr, GROUPS: tl.constexpr, SCALE: tl.constexpr, MINIMUM: tl.constexpr, CODEBOOK: tl.constexpr,
    HAS_BIAS: tl.constexpr, KIND: tl.constexpr, EVEN: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):
    """y[t, n] = kind(gate) * up of two products of one x with weights of one format."""
    first = tl.program_id(0) * BN
    gate, gate_2 = dot_few(
        *(x, lo, hi, scale, above, low, low_above, table, first.to(tl.int64), num_rows - first, K, TOKENS),
        *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, EVEN, BN, BU),
    )
    up, up_2 = dot_few(
        *(x, lo_1, hi_1, scale_1, above_1, low_1, low_above_1, table, first.to(tl.int64), num_rows - first, K, TOKENS),
        *(LO_BITS, HI_BITS, OFFSET, GROUPS, SCALE, MINIMUM, CODEBOOK, EVEN, BN, BU),
    )
    rows = first + tl.arange(0, BN)
    mask = rows < num_rows
    if HAS_BIAS:
        gate_bias = tl.load(bias + rows, mask=mask, other=0.0)
        up_bias = tl.load(bias_1 + rows, mask=mask, other=0.0)
        gate += gate_bias
        gate_2 += gate_bias
        up += up_bias
        up_2 += up_bias
    tl.store(y + rows, gated(gate, up, alpha, limit, KIND), mask=mask)
    if TOKENS == 2:
        tl.store(y + num_rows + rows, gated(gate_2, up_2, alpha, limit, KIND), mask=mask)
