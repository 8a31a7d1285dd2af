"""Steps one engine for several callers of one thread: whoever steps, each output reaches the one who waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

from runtime.engine.request import Request, RequestOutput
from runtime.engine.sampling_params import SamplingParams
from runtime.errors import InvalidArgument

if TYPE_CHECKING:
    from runtime.engine.engine import Engine


class Dispatcher:
    """Outputs go into the list that was given with their request."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._inboxes: dict[str, list[RequestOutput]] = {}
        self._names = (f"request-{i}" for i in count())

    def add(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        inbox: list[RequestOutput],
        request_id: str | None = None,
        *,
        priority: int = 0,
    ) -> tuple[Request, ...]:
        """Queue a prompt as `Engine.add_request` does; its outputs are appended to `inbox` until it is dropped."""
        if request_id is None:
            request_id = next(name for name in self._names if name not in self._inboxes)
        elif not request_id or request_id in self._inboxes:
            raise InvalidArgument(f"request id '{request_id}' is {'in use' if request_id else 'empty'}")
        samples = self.engine.add_request(prompt_token_ids, params, request_id, priority=priority)
        self._inboxes[request_id] = inbox
        return samples

    def step(self) -> None:
        """One step over everybody's requests."""
        for output in self.engine.step():
            inbox = self._inboxes.get(output.request_id)
            if inbox is not None:
                inbox.append(output)

    def drop(self, request_id: str) -> list[RequestOutput]:
        """Forget a request and end it, if it is not over; returns the last outputs of what ended now."""
        self._inboxes.pop(request_id, None)
        return self.engine.abort(request_id)
