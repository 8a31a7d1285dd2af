"""Finds special tokens in a text: the longest at the leftmost place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

__all__ = ["SpecialMatcher"]


class SpecialMatcher:
    """Cuts a text at special tokens.

    tokens      text -> id
    lstrip_ids  tokens that swallow the white space before them
    rstrip_ids  tokens that swallow the white space after them
    """

    def __init__(
        self, tokens: Mapping[str, int], *, lstrip_ids: Iterable[int] = (), rstrip_ids: Iterable[int] = ()
    ) -> None:
        self._tokens = {text: token_id for text, token_id in tokens.items() if text}
        self._lstrip_ids = frozenset(lstrip_ids)
        self._rstrip_ids = frozenset(rstrip_ids)
        lengths: dict[str, set[int]] = {}
        for text in self._tokens:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}
        firsts = "".join(map(re.escape, sorted(lengths)))
        self._firsts = re.compile(f"[{firsts}]") if firsts else None

    def split(self, text: str) -> Iterator[str | int]:
        """The text in order: ids of special tokens, and the pieces of text between them, none empty."""
        start = 0
        for begin, end, token_id in self._matches(text):
            before = text[start:begin]
            if token_id in self._lstrip_ids:
                before = before.rstrip()
            if before:
                yield before
            yield token_id
            start = end
            if token_id in self._rstrip_ids:
                while start < len(text) and text[start].isspace():
                    start += 1
        if start < len(text):
            yield text[start:]

    def _matches(self, text: str) -> Iterator[tuple[int, int, int]]:
        if self._firsts is None:
            return
        position = 0
        while (candidate := self._firsts.search(text, position)) is not None:
            begin = candidate.start()
            for length in self._lengths[text[begin]]:
                token_id = self._tokens.get(text[begin : begin + length])
                if token_id is not None:
                    yield begin, begin + length, token_id
                    position = begin + length
                    break
            else:
                position = begin + 1
