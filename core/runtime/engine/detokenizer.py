"""From token ids to the text that may be shown: whole characters, no special tokens, no part of a stop string."""

from __future__ import annotations

from runtime.engine.request import FinishReason, Request
from runtime.engine.stop import StopChecker
from runtime.tokenizer import Tokenizer


class Detokenizer:
    """The growing text of one request and the rules that end it."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        params = request.params
        self._request = request
        self._eos_token_ids = frozenset() if params.ignore_eos else tokenizer.eos_token_ids
        self._decoder = tokenizer.incremental_decoder(skip_special=params.skip_special_tokens)
        self._vocab_size = tokenizer.vocab_size
        self._stop = StopChecker(params.stop, include=params.include_stop_str_in_output)
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None

    def push(self, token_id: int) -> str:
        """Take the next token; return new text that can be shown, and set `finish_reason` when the request ends."""
        request = self._request
        # Embeddings are often padded beyond the tokenizer's vocabulary; such an id has no text.
        piece = self._decoder.push(token_id) if token_id < self._vocab_size else ""
        text = self._stop.push(piece)
        if self._stop.matched is not None:
            self.finish_reason, self.stop_reason = "stop", self._stop.matched
            return text
        if token_id in request.params.stop_token_ids:
            self.finish_reason, self.stop_reason = "stop", token_id
        elif token_id in self._eos_token_ids:
            self.finish_reason = "stop"
        elif request.num_output_tokens >= request.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            text += self.flush()
        return text

    def flush(self) -> str:
        """Text that was held back, when nothing more comes; a stop string that it completes still counts."""
        text = self._stop.push(self._decoder.flush())
        if self._stop.matched is not None:
            self.finish_reason, self.stop_reason = "stop", self._stop.matched
            return text
        return text + self._stop.flush()

    def complete(self) -> str:
        """The rest of the text where nothing more can follow; the request ends with "stop"."""
        self.finish_reason = "stop"
        return self.flush()
