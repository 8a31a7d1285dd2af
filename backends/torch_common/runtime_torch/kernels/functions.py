"""Functions that Triton's language lacks, accurate over the whole range, without infinities on the way."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def tanh(x):
    """(1 - e) / (1 + e) with e = exp(-2 |x|); near zero, where 1 - e cancels, its series up to x^13."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    z = x * x
    series = -0.0088632355 + z * 0.0035921280
    series = 0.021869488 + z * series
    series = -0.053968254 + z * series
    series = 0.13333334 + z * series
    series = -0.33333334 + z * series
    near = x + x * z * series
    return tl.where(tl.abs(x) < 0.35, near, tl.where(x < 0, -far, far))
