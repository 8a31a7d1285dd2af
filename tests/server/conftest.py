"""Servers for tests: over a scripted engine, and over the demo model, each in a thread on a port of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from fake_async_llm import FakeAsyncLLM
from running_server import RunningServer


@pytest.fixture(scope="session")
def ending() -> Iterator[list[RunningServer]]:
    """Servers that have been asked to end; nobody waits for them before the end of the session."""
    servers: list[RunningServer] = []
    yield servers
    for server in servers:
        server.join()


@pytest.fixture
def serve(ending: list[RunningServer]) -> Iterator[Callable[..., RunningServer]]:
    """`serve(llm, api_keys=(...,))` starts a server; it is stopped at the end of the test."""
    started: list[RunningServer] = []

    def start(llm: Any = None, **settings: Any) -> RunningServer:
        started.append(RunningServer(llm or FakeAsyncLLM(), **settings).start())
        return started[-1]

    yield start
    for server in started:
        server.stop()
    ending += started


@pytest.fixture(scope="module")
def fake(ending: list[RunningServer]) -> Iterator[RunningServer]:
    """A server that tests of a module share; its engine answers at once."""
    server = RunningServer(FakeAsyncLLM()).start()
    yield server
    server.stop()
    ending.append(server)


@pytest.fixture
def eventually() -> Callable[..., None]:
    """`eventually(lambda: condition)` waits until it holds."""

    def wait(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.005)

    return wait
