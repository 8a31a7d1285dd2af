"""Answers over time: server-sent events with pings, and the watch over the connection that stops work nobody reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from msgspec import Struct
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.errors import RuntimeFault
from runtime.server.failures import ApiError, from_fault
from runtime.server.replies import encode

T = TypeVar("T")
LOGGER = logging.getLogger("runtime.server")
CLIENT_CLOSED_REQUEST = 499
_PING = b": ping\n\n"


def json_response(reply: Struct, status: int = 200) -> Response:
    """A reply as a response."""
    return Response(encode(reply), status, media_type="application/json")


class EventStream(Response):
    """A stream of events that `produce` writes by `send`.

    Nothing is sent before the first event, so that a failure before it is an ordinary error response; silence longer
    than `ping_s` starts the stream. A later failure is an event in OpenAI's error shape, and the end of the stream.
    When the client leaves, `produce` is cancelled. `close` is called at the end, whatever that was.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        produce: Callable[[EventStream], Awaitable[None]],
        *,
        close: Callable[[], Awaitable[None]],
        ping_s: float,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._produce = produce
        self._close = close
        self._ping_s = ping_s
        self._is_started = False
        self._num_events = 0
        self._lock = asyncio.Lock()
        self._send: Send

    async def send(self, event: Struct) -> None:
        """Send an event."""
        await self.send_bytes(b"data: " + encode(event) + b"\n\n")

    async def done(self) -> None:
        """Send what clients know as the regular end."""
        await self.send_bytes(b"data: [DONE]\n\n")

    async def send_bytes(self, data: bytes) -> None:
        """Send events that are encoded already."""
        async with self._lock:
            if not self._is_started:
                self._is_started = True
                await self._send(
                    {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                )
            self._num_events += 1
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the stream to its end, or until the client leaves."""
        self._send = send
        producer = asyncio.ensure_future(self._run())
        leaving = asyncio.ensure_future(_left(receive))
        try:
            while True:
                seen = self._num_events
                done, _ = await asyncio.wait(
                    {producer, leaving}, timeout=self._ping_s, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    break
                if self._num_events == seen:
                    await self.send_bytes(_PING)
        finally:
            leaving.cancel()
            if not producer.done():
                producer.cancel()
            await asyncio.wait({producer, leaving})
            await self._close()  # a producer that was cancelled before it began has closed nothing
        if not producer.cancelled():
            producer.result()

    async def _run(self) -> None:
        try:
            await self._produce(self)
        except (ApiError, RuntimeFault) as error:
            if not self._is_started:
                raise
            await self._fail(error if isinstance(error, ApiError) else from_fault(error))
        except Exception:  # a bug of ours must not look like a finished answer
            if not self._is_started:
                raise
            LOGGER.exception("a stream failed")
            await self._fail(ApiError(500, "the server failed; its log has the reason", code="internal"))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _fail(self, error: ApiError) -> None:
        await self.send_bytes(b"data: " + error.to_json() + b"\n\n")


async def until_disconnect(
    receive: Receive, answer: Coroutine[Any, Any, Response], close: Callable[[], Awaitable[None]] | None = None
) -> Response:
    """The answer, unless the client leaves before: then the work is cancelled, and nobody reads what is returned.

    `close` is called at the end, whatever that was.
    """
    working = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait({working, leaving})
        if close is not None:
            await close()
    return Response(status_code=CLIENT_CLOSED_REQUEST) if working.cancelled() else working.result()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
