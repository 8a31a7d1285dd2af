"""A server over the demo model, in this process."""

from __future__ import annotations

import asyncio
from typing import Any

from running_server import RunningServer

from runtime.engine.async_llm import AsyncLLM
from runtime.engine.config import EngineConfig


class DemoServer(RunningServer):
    """Its engine runs in a thread; `config` is the engine's, `settings` the server's."""

    def __init__(self, config: dict[str, Any] | None = None, **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        engine = EngineConfig(**{"max_num_seqs": 8, "max_model_len": 512} | (config or {}))
        llm = self.loop.run_until_complete(AsyncLLM.start(engine))
        super().__init__(llm, **{"model_names": ("demo",)} | settings)

    def _run(self) -> None:
        try:
            self.loop.run_until_complete(self.server.serve(sockets=[self.listener]))
            self.service.close()
            self.loop.run_until_complete(self.llm.close())
        finally:
            self.loop.close()
