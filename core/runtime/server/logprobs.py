"""Log-probabilities in the two shapes of the OpenAI interface."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.engine.request import PositionLogprobs, TokenLogprob
from runtime.server.replies import (
    ChatLogprob,
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)
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
    tops: list[dict[str, float] | None] = [_tops(p) for p in positions if p.top]
    logprobs = CompletionLogprobs(
        tokens=[p.chosen.text for p in positions],
        token_logprobs=[_finite(p.chosen) for p in positions],
        top_logprobs=tops or None,
        text_offset=offsets,
        bytes=[_bytes(tokenizer, p.chosen) for p in positions],
    )
    return logprobs, start


def echoed_logprobs(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    positions: Sequence[PositionLogprobs | None],
    count: int,
    text: str,
) -> CompletionLogprobs:
    """The shape of completions for a prompt, of which `text` is shown; with `count` alternatives."""
    positions = [None if p is None else PositionLogprobs(p.chosen, p.top[:count]) for p in positions]
    token_bytes = [list(tokenizer.token_bytes(t)) if t < tokenizer.vocab_size else [] for t in token_ids]
    return CompletionLogprobs(
        tokens=[bytes(b).decode("utf-8", "replace") for b in token_bytes],
        token_logprobs=[None if p is None else _finite(p.chosen) for p in positions],
        top_logprobs=[None if p is None else _tops(p) for p in positions] if count else None,
        text_offset=_offsets(tokenizer, token_ids, text),
        bytes=token_bytes,
    )


def joined(first: CompletionLogprobs | None, second: CompletionLogprobs | None) -> CompletionLogprobs | None:
    """Log-probabilities of a prompt and of what follows it, as one."""
    if first is None or second is None:
        return first or second
    return CompletionLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=None if first.top_logprobs is None else first.top_logprobs + (second.top_logprobs or []),
        text_offset=first.text_offset + second.text_offset,
        bytes=first.bytes + second.bytes,
    )


def prompt_logprobs(positions: Sequence[PositionLogprobs | None], count: int) -> PromptLogprobs:
    """The shape of vLLM's prompt_logprobs, with `count` alternatives."""
    return [
        None
        if p is None
        else {
            t.token_id: PromptLogprob(logprob=_finite(t), rank=t.rank, decoded_token=t.text)
            for t in (p.chosen, *p.top[:count])
        }
        for p in positions
    ]


def _offsets(tokenizer: Tokenizer, token_ids: Sequence[int], text: str) -> list[int]:
    """Where in `text` each token begins. Tokens that only the model sees, as one for the beginning, take no room."""
    decoder = tokenizer.incremental_decoder(skip_special=False)
    pieces = [decoder.push(t) if t < tokenizer.vocab_size else "" for t in token_ids]
    hidden = max("".join(pieces).find(text), 0)
    offsets, at = [], 0
    for piece in pieces:
        offsets.append(min(max(at - hidden, 0), len(text)))
        at += len(piece)
    return offsets


def _tops(position: PositionLogprobs) -> dict[str, float]:
    return {t.text: _finite(t) for t in (*position.top, position.chosen)}


def _finite(token: TokenLogprob) -> float:
    return max(token.logprob, LOWEST)


def _bytes(tokenizer: Tokenizer, token: TokenLogprob) -> list[int]:
    """UTF-8 bytes of a token; none for ids of a padded embedding that the tokenizer does not know."""
    return list(tokenizer.token_bytes(token.token_id)) if token.token_id < tokenizer.vocab_size else []
