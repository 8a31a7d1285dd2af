"""How long the context is and how many KV blocks that takes: fitted to model and memory, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.errors import InvalidArgument, OutOfMemory

MEMORY_SHARE = 0.8
"""Share of the memory left beside the weights that the KV cache may take; the rest is for intermediates."""


@dataclass(frozen=True)
class ContextPlan:
    """`max_model_len` tokens per sequence, `num_blocks` blocks in all; `limited_by` says what decided."""

    max_model_len: int
    num_blocks: int
    block_size: int
    limited_by: str

    def describe(self) -> str:
        """For the status line."""
        return f"context {self.max_model_len} ({self.limited_by})"


def fit_context(
    *,
    requested: int | None,
    model_limit: int,
    kv_bytes_per_token: int,
    free_bytes: int | None,
    block_size: int,
    max_num_seqs: int,
    num_kv_blocks: int | None = None,
    device: str = "",
) -> ContextPlan:
    """Fit the context. `free_bytes` is the memory beside the weights; None (no device present) does not limit.

    With `device`, one of several, memory and `kv_bytes_per_token` are its own: it is the one that holds the fewest.

    The pool never has more blocks than `max_num_seqs` sequences of full length need, nor more than `num_kv_blocks`.

    A requested length beyond the model's is refused, and one that does not fit raises OutOfMemory with both figures.
    """
    if requested is not None and requested > model_limit:
        raise InvalidArgument(
            f"a context of {requested} tokens was asked for, the model was made for {model_limit}",
            remedy=f"use at most {model_limit}",
        )
    fitting = None
    if free_bytes is not None:
        fitting = max(int(free_bytes * MEMORY_SHARE) // max(kv_bytes_per_token, 1) // block_size, 0)
    wanted = requested or model_limit
    limited_by = "as asked" if requested else "the model's limit"
    if fitting is not None and fitting * block_size < wanted:
        if requested or fitting == 0:
            remedy = f"free some memory, or place fewer layers on {device}" if device else "free some memory"
            raise OutOfMemory(
                f"a context of {wanted if requested else block_size} tokens needs "
                f"{(wanted if requested else block_size) * kv_bytes_per_token / 1e9:.2f} GB of KV cache, "
                f"{(free_bytes or 0) * MEMORY_SHARE / 1e9:.2f} GB can be used{f' on {device}' if device else ''}",
                remedy=f"ask for at most {fitting * block_size} tokens" if fitting else remedy,
                requested_bytes=wanted * kv_bytes_per_token,
                available_bytes=int((free_bytes or 0) * MEMORY_SHARE),
            )
        wanted, limited_by = fitting * block_size, f"memory; the model's limit is {model_limit}"
    if num_kv_blocks is not None and num_kv_blocks * block_size < wanted:
        if requested:
            raise InvalidArgument(
                f"{num_kv_blocks} KV blocks of {block_size} tokens hold less than the context of {wanted} tokens",
                remedy=f"use at least {-(-wanted // block_size)} blocks (num_kv_blocks), or a shorter context",
            )
        wanted, limited_by = num_kv_blocks * block_size, f"num_kv_blocks; the model's limit is {model_limit}"
    per_sequence = -(-wanted // block_size)
    num_blocks = per_sequence * max_num_seqs
    if fitting is not None:
        num_blocks = max(min(num_blocks, fitting), per_sequence)
    if num_kv_blocks is not None:
        num_blocks = min(num_blocks, num_kv_blocks)
    return ContextPlan(wanted, num_blocks, block_size, limited_by)
