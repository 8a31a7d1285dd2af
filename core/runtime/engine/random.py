"""Counter-based random numbers: a seed and a position give the same number on every machine and in any batch."""

from __future__ import annotations


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) with 24 random bits, for the `index`-th token of the request with `seed`.

    Philox 4x64 (Salmon et al. 2011) keyed by the seed, with the index as its counter; exactly representable in f32.
    """
    import numpy as np

    raw = int(np.random.Philox(key=seed, counter=index).random_raw())
    return (raw >> 40) * 2.0**-24
