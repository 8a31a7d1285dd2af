"""Log-probabilities in the two shapes of the OpenAI interface."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.engine.request import PositionLogprobs, TokenLogprob
from runtime.server.replies import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob
from runtime.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for minus infinity, which JSON does not have; the value that OpenAI and vLLM give."""


def chat_logprobs(tokenizer: Tokenizer, positions: Sequence[PositionLogprobs]) -> ChatLogprobs:
    """The shape of chat completions."""
    content = []
    for position in positions:
        chosen = position.chosen
        content.append(
            ChatLogprob(
                token=chosen.text,
                logprob=_finite(chosen),
                bytes=_bytes(tokenizer, chosen),
                top_logprobs=[
                    TopLogprob(token=t.text, logprob=_finite(t), bytes=_bytes(tokenizer, t)) for t in position.top
                ],
            )
        )
    return ChatLogprobs(content=content)


def completion_logprobs(
    tokenizer: Tokenizer, positions: Sequence[PositionLogprobs], start: int
) -> tuple[CompletionLogprobs, int]:
    """The shape of completions, and where the next token's text begins; `start` is where the first one's does."""
    offsets = []
    for position in positions:
        offsets.append(start)
        start += len(position.chosen.text)
    tops = [{t.text: _finite(t) for t in (*p.top, p.chosen)} for p in positions if p.top]
    logprobs = CompletionLogprobs(
        tokens=[p.chosen.text for p in positions],
        token_logprobs=[_finite(p.chosen) for p in positions],
        top_logprobs=tops or None,
        text_offset=offsets,
        bytes=[_bytes(tokenizer, p.chosen) for p in positions],
    )
    return logprobs, start


def _finite(token: TokenLogprob) -> float:
    return max(token.logprob, LOWEST)


def _bytes(tokenizer: Tokenizer, token: TokenLogprob) -> list[int]:
    """UTF-8 bytes of a token; none for ids of a padded embedding that the tokenizer does not know."""
    return list(tokenizer.token_bytes(token.token_id)) if token.token_id < tokenizer.vocab_size else []
