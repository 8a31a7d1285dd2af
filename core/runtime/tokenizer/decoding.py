"""Ids back to text, one at a time, without ever showing half a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from runtime.tokenizer.vocabulary import Vocabulary

__all__ = ["IncrementalDecoder"]


class IncrementalDecoder:
    """Turns a stream of token ids into text.

    What `push` and `flush` return, put together, is what `Tokenizer.decode` makes of all ids. Bytes that do not yet
    form a character are held back; bytes that cannot become one are U+FFFD.

    The space that a tokenizer puts before the first word of a text is taken off the first piece, and only there: with
    `prompt_tail_ids`, the text goes on behind these ids, of which nothing is returned.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, skip_special: bool = True, prompt_tail_ids: Iterable[int] = ()
    ) -> None:
        self._vocabulary = vocabulary
        self._hidden_ids = vocabulary.special.hidden_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True
        for token_id in prompt_tail_ids:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty where it is special and hidden, or ends inside a character."""
        if token_id in self._hidden_ids:
            return ""
        piece = self._vocabulary.piece(token_id)
        if self._at_start and piece:
            self._at_start = False
            if self._vocabulary.strips_first_space:
                piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """The end of the text: U+FFFD for a character that was never completed, otherwise nothing."""
        return self._utf8.decode(b"", final=True)
