"""Products of one or two rows, which are bound by memory: one weight, or several in one launch."""

import triton
import triton.language as tl

from runtime_torch.kernels.dot_few import dot_few


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
