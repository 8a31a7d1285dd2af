"""The outputs of one request as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from runtime.engine.request import RequestOutput
from runtime.errors import EngineDied


class RequestStream(AsyncIterator[RequestOutput]):
    """Ends when all samples are finished. It belongs to the event loop that made it.

    abandon    called with the request's id when the caller goes away before the end
    has_begun  whether anything came of it
    """

    def __init__(
        self, request_id: str, num_samples: int, abandon: Callable[[str], None], *, num_prompt_tokens: int = 0
    ) -> None:
        self.request_id = request_id
        self.num_prompt_tokens = num_prompt_tokens
        self.num_unfinished = num_samples
        self.has_begun = False
        self._abandon = abandon
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[RequestOutput | EngineDied | None] = asyncio.Queue()
        self._is_over = False

    async def __anext__(self) -> RequestOutput:
        if self._is_over:
            raise StopAsyncIteration
        try:
            item = await self._items.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if isinstance(item, RequestOutput):
            return item
        self._is_over = True
        if item is not None:
            raise item
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the request, if it is not over; closing twice is harmless."""
        if self._leave():
            self._abandon(self.request_id)

    def put(self, output: RequestOutput) -> None:
        """Add an output."""
        self.has_begun = True
        self._items.put_nowait(output)
        if output.finish_reason is not None:
            self.num_unfinished -= 1
            if not self.num_unfinished:
                self._items.put_nowait(None)

    def fail(self, error: EngineDied) -> None:
        """Nothing more comes, for this reason."""
        self.num_unfinished = 0
        self._items.put_nowait(error)

    def _leave(self) -> bool:
        """Whether the request goes on without a reader from now on."""
        is_unfinished = not self._is_over and self.num_unfinished > 0
        self._is_over = True
        return is_unfinished

    def __del__(self) -> None:
        # Dropped without being closed; the finalizer may run in any thread.
        if self._leave() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._abandon, self.request_id)
