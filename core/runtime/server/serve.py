"""The life of the server: sockets first, then the model, then requests; a signal drains, a second one leaves."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import uvicorn

from runtime.engine.async_llm import AsyncLLM
from runtime.engine.config import EngineConfig
from runtime.errors import InvalidArgument
from runtime.server.app import create_app
from runtime.server.prompt_log import usable_folder
from runtime.server.service import Service
from runtime.server.settings import ServerSettings

Progress = Callable[[int, int], None]
Say = Callable[[str], None]
_KEEP_ALIVE_S = 75
_BACKLOG = 2048
_LAST_ANSWERS_S = 3


async def serve(
    settings: ServerSettings,
    engine_config: EngineConfig,
    *,
    process: bool = True,
    progress: Progress | None = None,
    say: Say,
) -> None:
    """Serve until a signal. Raises InvalidArgument for a place or certificate that cannot be used, before loading.

    process  the engine runs in a process of its own, which is started again when it dies
    say      is told what a person should know: the status of the model, the ready line, the drain
    """
    check_tls(settings)
    if settings.log_prompts is not None:
        usable_folder(settings.log_prompts)
    listener = listen(settings)
    try:
        llm = await AsyncLLM.start(engine_config, process=process, progress=progress)
        try:
            for line in llm.status:
                say(line)
            service = Service(llm, settings)
            server = DrainingServer(service, say)
            try:
                await server.serve(sockets=[listener])
            finally:
                service.close()
        finally:
            await llm.close()
    finally:
        listener.close()
        if settings.uds:
            Path(settings.uds).unlink(missing_ok=True)


class DrainingServer(uvicorn.Server):
    """uvicorn that keeps listening while it drains: who asks meanwhile is told, and not refused a connection."""

    def __init__(self, service: Service, say: Say) -> None:
        # What uvicorn reports below an error is about clients that broke off; it has no place in an operator's log.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        logging.getLogger("asyncio").addFilter(_is_no_departure)
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                create_app(service),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                ssl_certfile=settings.ssl_certfile,
                ssl_keyfile=settings.ssl_keyfile,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_LAST_ANSWERS_S,
                backlog=_BACKLOG,
            )
        )
        self._service = service
        self._say = say
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._say(ready_line(self._service, (sockets or [])[0]))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal; leave at once at the second."""
        if self._service.is_draining:
            os._exit(128 + sig)
        self._service.is_draining = True
        self._loop.call_soon_threadsafe(self._start_drain, sig)

    def _start_drain(self, sig: int) -> None:
        self._draining = asyncio.ensure_future(self._drain(sig))

    async def _drain(self, sig: int) -> None:
        running, timeout_s = self._service.metrics.in_flight, self._service.settings.drain_timeout_s
        if running:
            what = f"{running} request{'' if running == 1 else 's'}"
            name = signal.Signals(sig).name
            self._say(f"{name}: no new work; {what} may go on for {timeout_s:g} s, a second signal leaves at once")
        try:
            await self._service.drain(timeout_s)
        finally:
            self.should_exit = True


def ready_line(service: Service, listener: socket.socket) -> str:
    """Where, what, how much: the line that tells that requests can come."""
    settings, llm = service.settings, service.llm
    stats = llm.stats()
    parts = [
        f"ready: {address(settings, listener)}",
        f"model {', '.join(settings.model_names)}",
        f"context {llm.max_model_len}",
        f"{stats.num_blocks} KV blocks of {stats.block_size} tokens",
        f"at most {llm.max_num_seqs} sequences",
    ]
    if settings.api_keys:
        parts.append(f"{len(settings.api_keys)} API key{'' if len(settings.api_keys) == 1 else 's'}")
    return " · ".join(parts)


def address(settings: ServerSettings, listener: socket.socket) -> str:
    """The URL that clients use."""
    if settings.uds:
        return f"unix:{settings.uds}"
    host, port = listener.getsockname()[:2]
    return f"{'https' if settings.ssl_certfile else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def check_tls(settings: ServerSettings) -> None:
    """Raise InvalidArgument where certificate and key cannot be used."""
    if settings.ssl_certfile is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgument(
            f"the TLS certificate '{settings.ssl_certfile}' cannot be used: {error}",
            remedy="give a PEM file with the chain, and its key with --ssl-keyfile",
        ) from error


def listen(settings: ServerSettings) -> socket.socket:
    """A bound socket; raises InvalidArgument where the place is taken or does not exist."""
    try:
        return _listen_unix(Path(settings.uds)) if settings.uds else _listen_tcp(settings.host, settings.port)
    except OSError as error:
        where = settings.uds or f"{settings.host}:{settings.port}"
        raise InvalidArgument(
            f"cannot listen on {where}: {error.strerror or error}",
            remedy="take another with --port or --host" if not settings.uds else "take another path with --uds",
        ) from error


def _listen_tcp(host: str, port: int) -> socket.socket:
    (family, kind, protocol, _, place), *_ = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except BaseException:
        listener.close()
        raise
    return listener


def _listen_unix(path: Path) -> socket.socket:
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
            path.unlink()  # left by a server that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
    except BaseException:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


def _is_no_departure(record: logging.LogRecord) -> bool:
    """A client that leaves while it is written to is no news; asyncio warns of it once for every further write."""
    return record.getMessage() != "socket.send() raised exception."
