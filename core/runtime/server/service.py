"""What all routes share: the model, the settings, the metrics, and whether new work is still taken."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from runtime import __version__
from runtime.server.failures import ApiError
from runtime.server.metrics import Metrics
from runtime.server.prompt_log import PromptLog
from runtime.server.settings import ServerSettings

if TYPE_CHECKING:
    from runtime.engine.async_llm import AsyncLLM
    from runtime.server.generation import Generation


class Service:
    """One model behind one server."""

    def __init__(self, llm: AsyncLLM, settings: ServerSettings) -> None:
        self.llm = llm
        self.settings = settings
        self.metrics = Metrics()
        self.created = int(time.time())
        self.fingerprint = f"hal-runtime-{__version__}-{llm.fingerprint[:12]}"
        """Tells clients when answers may change although the seed does not: another version, another model."""
        self.prompt_log = None if settings.log_prompts is None else PromptLog(settings.log_prompts)
        self.is_draining = False
        self.generations: dict[str, Generation] = {}
        """Requests that are being answered, by id."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def model_name(self) -> str:
        """The name that answers carry."""
        return self.settings.model_names[0]

    def check_model(self, name: str | None) -> None:
        """Raise 404 for a model that is not served; a request without a model means the one that is."""
        if name is not None and name not in self.settings.model_names:
            served = ", ".join(f"'{known}'" for known in self.settings.model_names)
            raise ApiError(
                404, f"model '{name}' is not served here; served: {served}", code="model_not_found", param="model"
            )

    def enter(self) -> None:
        """A request has come in."""
        self.metrics.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        """A request has been answered."""
        self.metrics.in_flight -= 1
        if not self.metrics.in_flight:
            self._idle.set()

    def close(self) -> None:
        """Write what is to be logged."""
        if self.prompt_log is not None:
            self.prompt_log.close()

    async def drain(self, timeout_s: float) -> None:
        """Take no new work, let running requests end for `timeout_s`, end the rest and wait for their answers."""
        self.is_draining = True
        await self.llm.close(drain_s=timeout_s)
        try:
            await asyncio.wait_for(self._idle.wait(), timeout=2.0)
        except asyncio.TimeoutError:
            return  # clients that do not read their answers; their connections are closed with the server
