"""What can be said about a request before it reaches the engine's loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from runtime.engine.sampling_params import SamplingParams
from runtime.errors import InvalidArgument


def check_request(
    prompt_token_ids: Sequence[int], params: SamplingParams, *, vocab_size: int, max_model_len: int
) -> None:
    """Raise InvalidArgument for a request that can never run."""
    n = len(prompt_token_ids)
    if n == 0:
        raise InvalidArgument("the prompt has no tokens; there is nothing to continue")
    check_token_ids(prompt_token_ids, "the prompt", vocab_size)
    check_token_ids(params.logit_bias, "logit_bias", vocab_size)
    check_token_ids(params.allowed_token_ids or (), "allowed_token_ids", vocab_size)
    if n >= max_model_len:
        raise InvalidArgument(
            f"prompt has {n} tokens, context is {max_model_len} and at least one must be left for the answer",
            remedy=f"shorten it or start with a context of more than {n} (--ctx, max_model_len)",
        )


def check_text(token_ids: Sequence[int], what: str, *, vocab_size: int, max_model_len: int) -> None:
    """Raise InvalidArgument for token ids that the model cannot read as one text."""
    if not 0 < len(token_ids) <= max_model_len:
        raise InvalidArgument(f"{what} of {len(token_ids)} tokens: it must be 1 .. {max_model_len} (the context)")
    check_token_ids(token_ids, "the text", vocab_size)


def check_token_ids(token_ids: Iterable[int], what: str, vocab_size: int) -> None:
    """Raise InvalidArgument for an id outside the vocabulary."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidArgument(f"{what} holds token id {token_id}; the vocabulary has ids 0 .. {vocab_size - 1}")
