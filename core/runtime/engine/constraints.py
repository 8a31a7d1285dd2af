"""Tokens that a request rules out by itself: words that must not come, and all but a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TokenIds = tuple[int, ...]


def bad_word_ids(words: Sequence[str], tokenizer: Tokenizer) -> tuple[TokenIds, ...]:
    """The token ids that must not follow each other, as users of vLLM know it.

    Each word is taken as it is and behind a space; the latter only where the space makes another word of as many
    tokens, and not where it is a token of its own.
    """
    found: list[TokenIds] = []
    for word in words:
        bare = tuple(tokenizer.encode(word.lstrip(), add_special=False, parse_special=False))
        spaced = tuple(tokenizer.encode(" " + word.lstrip(), add_special=False, parse_special=False))
        found.append(bare)
        if len(spaced) == len(bare) and spaced[0] != bare[0]:
            found.append(spaced)
    return tuple(found)


def banned_next(bad_words: Sequence[TokenIds], output_token_ids: Sequence[int]) -> Iterator[int]:
    """The last token of every word whose other tokens the output ends with."""
    for ids in bad_words:
        before = len(ids) - 1
        if before <= len(output_token_ids) and list(ids[:-1]) == list(
            output_token_ids[len(output_token_ids) - before :]
        ):
            yield ids[-1]


def only(token_ids: Sequence[int], vocab_size: int) -> NDArray[np.bool_]:
    """A mask of these tokens: bool [vocab_size]."""
    import numpy as np

    mask = np.zeros(vocab_size, np.bool_)
    mask[list(token_ids)] = True
    return mask
