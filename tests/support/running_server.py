"""A server in a thread of this process, on a port of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx

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
        """Ask it to end; `join` waits for that, which takes some tenths of a second."""
        self.server.should_exit = True

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.listener.close()

    def signal(self) -> None:
        """What SIGTERM does, in a process that cannot have one."""
        self.server.handle_exit(15, None)

    def client(self, **more: Any) -> httpx.Client:
        # Loading the certificates of the system takes longer than most tests.
        return httpx.Client(base_url=self.url, **{"verify": False} | more)

    def _run(self) -> None:
        asyncio.run(self.server.serve(sockets=[self.listener]))
        self.service.close()
