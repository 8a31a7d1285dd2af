"""What tests must know of the device that `LLM()` takes on this machine."""

from __future__ import annotations

from functools import cache

from runtime import LLM
from runtime.backend import CachesWeights


@cache
def block_size() -> int:
    """Tokens in a KV block, which the device chooses: 64 with native kernels, 16 with the reference."""
    with LLM(max_num_seqs=1, max_model_len=64) as llm:
        return llm.loaded.context.block_size


def blocks_for(num_tokens: int) -> int:
    """KV blocks that hold `num_tokens` tokens of one sequence."""
    return -(-num_tokens // block_size())


@cache
def packs_weights() -> bool:
    """Whether its weights are packed at load, and so can be kept in a cache."""
    with LLM(max_num_seqs=1, max_model_len=64) as llm:
        return isinstance(llm.loaded.devices[llm.loaded.choice.backend.name], CachesWeights)
