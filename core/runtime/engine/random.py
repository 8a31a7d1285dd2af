"""Counter-based random numbers: a seed and a position give the same number on every machine and in any batch."""

from __future__ import annotations

_WORD = 2**64 - 1
_FACTORS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS = 10


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) with 24 random bits, for the `index`-th token of the request with `seed`.

    Philox 4x64 (Salmon et al. 2011) keyed by the seed, with the index as its counter, as numpy has it; exactly
    representable in f32. Written out, since making one of numpy's generators for each number takes longer.
    """
    a, b, c, d = index + 1, 0, 0, 0
    key, other_key = seed, 0
    for _ in range(_ROUNDS):
        first, second = _FACTORS[0] * a, _FACTORS[1] * c
        a, b, c, d = second >> 64 ^ b ^ key, second & _WORD, first >> 64 ^ d ^ other_key, first & _WORD
        key, other_key = (key + _KEY_STEPS[0]) & _WORD, (other_key + _KEY_STEPS[1]) & _WORD
    return (a >> 40) * 2.0**-24
