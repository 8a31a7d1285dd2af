"""Stop strings in streamed text: nothing that may turn out to be part of one is let out early."""

from __future__ import annotations

from collections.abc import Sequence


class StopChecker:
    """Watches text arrive in pieces.

    `push` returns the text that is safe to show. Text that could be the beginning of a stop string is held back until
    the next piece decides. When a stop string is complete, everything from its first character on is dropped (with
    `include`, from behind it on) and `matched` names it; the earliest match wins, and among those at one place the
    first in the list.
    """

    def __init__(self, stop: Sequence[str], *, include: bool = False) -> None:
        self._stop = tuple(stop)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, piece: str) -> str:
        """Add `piece`; return what can be shown now."""
        if self.matched is not None:
            return ""
        text = self._held + piece
        hits = [(at, i) for i, s in enumerate(self._stop) if (at := text.find(s)) >= 0]
        if hits:
            at, which = min(hits)
            self.matched = self._stop[which]
            self._held = ""
            return text[: at + len(self.matched)] if self._include else text[:at]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The held text, when generation ends for another reason."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
