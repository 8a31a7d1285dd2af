"""Rotary embeddings: every way to scale them, reduced to a vector of inverse frequencies and one factor.

Sources: Su et al. 2021 (RoFormer); kaiokendev 2023 (linear); bloc97 and emozilla 2023 (dynamic NTK); Peng et al. 2023
(YaRN); Dubey et al. 2024 (Llama 3.1); Ding et al. 2024 (LongRoPE).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from runtime.errors import MalformedFile
from runtime.models.spec import RopeParameters

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def inverse_frequencies(
    params: RopeParameters, max_model_len: int, factors: NDArray[Any] | None = None
) -> tuple[NDArray[np.float32], float]:
    """The angle per position of each rotated pair, and the factor for cosine and sine.

    Returns float32 [rotary_dim / 2] and the attention factor. `factors` [rotary_dim / 2] are the divisors that GGUF
    files carry as a tensor; for longrope the caller has chosen the short or the long one (see `uses_long_factors`).

    What depends on the length of the text in the original formulations (longrope's two sets, dynamic NTK) is chosen
    once, by `max_model_len`: keys in the cache were rotated with one set and cannot change it later.
    """
    import numpy as np

    theta = params.theta
    if params.kind == "dynamic":
        theta = _dynamic_theta(params, max_model_len)
    exponents = np.arange(0, params.rotary_dim, 2, dtype=np.float64) / params.rotary_dim
    inv_freq = theta**-exponents
    if params.kind == "linear":
        inv_freq = inv_freq / _factor(params)
    elif params.kind == "llama3":
        inv_freq = _llama3(params, inv_freq)
    elif params.kind == "yarn":
        inv_freq = _yarn(params, inv_freq)
    elif params.kind == "longrope" and factors is None:
        chosen = params.long_factor if uses_long_factors(params, max_model_len) else params.short_factor
        factors = np.asarray(chosen, dtype=np.float64)
    if factors is not None:
        if factors.shape != inv_freq.shape:
            raise MalformedFile(
                f"rope factors have shape {factors.shape}; {params.rotary_dim} rotated elements per head "
                f"need ({len(inv_freq)},)"
            )
        if not (factors > 0).all():
            raise MalformedFile(f"rope factors must be positive, the smallest is {factors.min()}")
        inv_freq = inv_freq / factors
    return inv_freq.astype(np.float32), attention_factor(params)


def uses_long_factors(params: RopeParameters, max_model_len: int) -> bool:
    """Whether longrope's long factors hold: the context asked for is longer than the one of pre-training."""
    return params.kind == "longrope" and max_model_len > params.original_max_position_embeddings


def attention_factor(params: RopeParameters) -> float:
    """What cosine and sine are multiplied by: 1, or what YaRN and LongRoPE prescribe for the extension factor."""
    if params.kind == "longrope":
        if params.attention_factor is not None:
            return params.attention_factor
        factor = _extension(params)
        original = params.original_max_position_embeddings
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    if params.kind != "yarn":
        return 1.0
    if params.attention_factor is not None:
        return params.attention_factor
    factor = _extension(params)
    if params.mscale and params.mscale_all_dim:
        return _mscale(factor, params.mscale) / _mscale(factor, params.mscale_all_dim)
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _factor(params: RopeParameters) -> float:
    assert params.factor is not None
    return params.factor


def _extension(params: RopeParameters) -> float:
    if params.factor is not None:
        return params.factor
    return params.max_position_embeddings / params.original_max_position_embeddings


def _dynamic_theta(params: RopeParameters, max_model_len: int) -> float:
    factor, dim, trained = _factor(params), params.rotary_dim, params.max_position_embeddings
    length = max(max_model_len, trained)
    theta: float = params.theta * ((factor * length / trained) - (factor - 1)) ** (dim / (dim - 2))
    return theta


def _llama3(params: RopeParameters, inv_freq: NDArray[np.float64]) -> NDArray[np.float64]:
    """Long waves are stretched by the factor, short ones stay, those between are blended."""
    import numpy as np

    factor, original = _factor(params), params.original_max_position_embeddings
    low, high = params.low_freq_factor, params.high_freq_factor
    turns = original * inv_freq / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    blended: NDArray[np.float64] = inv_freq * ((1 - smooth) / factor + smooth)
    return blended


def _yarn(params: RopeParameters, inv_freq: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pairs that turn often keep their frequency, pairs that turn seldom are interpolated, with a ramp between."""
    import numpy as np

    factor, dim = _extension(params), params.rotary_dim

    def pair_of(turns: float) -> float:
        return (
            dim
            * math.log(params.original_max_position_embeddings / (turns * 2 * math.pi))
            / (2 * math.log(params.theta))
        )

    low, high = pair_of(params.beta_fast), pair_of(params.beta_slow)
    if params.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero
    interpolated = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    mixed: NDArray[np.float64] = inv_freq * (interpolated / factor + (1 - interpolated))
    return mixed
