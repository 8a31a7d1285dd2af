"""How the text of a model becomes a message: the one place that parsers of tool calls and reasoning will change."""

from __future__ import annotations

from runtime.server.replies import AnswerMessage, Delta


class AnswerAssembler:
    """Reads the text of one sample as it comes. The message is the sum of the deltas, streamed or not."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._is_first = True

    def push(self, text: str) -> Delta:
        """What this text adds; the first delta names the role."""
        self._parts.append(text)
        role, self._is_first = ("assistant" if self._is_first else None), False
        return Delta(role=role, content=text if text or role else None)

    def message(self) -> AnswerMessage:
        """The whole message."""
        return AnswerMessage(content="".join(self._parts))
