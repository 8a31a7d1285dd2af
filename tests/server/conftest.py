"""Servers for tests: over a scripted engine, and over the demo model, each in a thread on a port of its own."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from fake_async_llm import FakeAsyncLLM

from runtime.server.serve import DrainingServer, address, listen
from runtime.server.service import Service
from runtime.server.settings import ServerSettings


class RunningServer:
    """A server in a thread; `url` is where it listens."""

    def __init__(self, llm: Any, **settings: Any) -> None:
        self.llm = llm
        self.settings = ServerSettings(**{"port": 0, "model_names": ("fake", "alias"), "ping_s": 5.0} | settings)
        self.listener = listen(self.settings)
        self.url = address(self.settings, self.listener)
        self.service = Service(llm, self.settings)
        self.said: list[str] = []
        self.server = DrainingServer(self.service, self.said.append)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> RunningServer:
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self.server.started and time.monotonic() < deadline:
            time.sleep(0.005)
        assert self.server.started
        return self

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(10)
        self.listener.close()

    def signal(self) -> None:
        """What SIGTERM does, in a process that cannot have one."""
        self.server.handle_exit(15, None)

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, **more)

    def _run(self) -> None:
        asyncio.run(self.server.serve(sockets=[self.listener]))


@pytest.fixture
def serve() -> Iterator[Callable[..., RunningServer]]:
    """`serve(llm, api_keys=(...,))` starts a server; it is stopped at the end of the test."""
    started: list[RunningServer] = []

    def start(llm: Any = None, **settings: Any) -> RunningServer:
        started.append(RunningServer(llm or FakeAsyncLLM(), **settings).start())
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def fake() -> Iterator[RunningServer]:
    """A server that tests of a module share; its engine answers at once."""
    server = RunningServer(FakeAsyncLLM()).start()
    yield server
    server.stop()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """`eventually(lambda: condition)` waits until it holds."""

    def wait(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.005)

    return wait
