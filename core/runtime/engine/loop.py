"""Turns commands into steps and steps into messages, until it is told to stop. It runs in a thread or a process."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from runtime.engine.embedding import EmbeddingJob
from runtime.engine.engine import Engine
from runtime.engine.messages import (
    Abort,
    Add,
    Batch,
    CancelEmbed,
    Command,
    Embed,
    Message,
    PrepareGrammars,
    ResetPrefixCache,
    unpack_token_ids,
)
from runtime.engine.request import RequestOutput
from runtime.errors import RuntimeFault


class EngineLoop:
    """The only one that touches `engine` once it runs. `send` gets one message per step, with all that it made."""

    def __init__(self, engine: Engine, inbox: SimpleQueue[Command], send: Callable[[Message], None]) -> None:
        self._engine = engine
        self._inbox = inbox
        self._send = send
        self._jobs: deque[tuple[int, EmbeddingJob]] = deque()
        self._outputs: list[RequestOutput] = []
        self._answers: list[tuple[int, Any]] = []
        self.step_started: float | None = None
        """When the step that runs now began, on the clock of `time.monotonic`."""

    def run(self) -> None:
        """Serve until Stop; raises what makes the engine useless."""
        engine = self._engine
        while self._take_commands():
            if engine.has_work or self._jobs:
                self.step_started = time.monotonic()
                if engine.has_work:
                    self._outputs += engine.step()
                self._advance_job()
                self.step_started = None
            self._send(Batch(tuple(self._outputs), tuple(self._answers), engine.stats()))
            self._outputs, self._answers = [], []

    def _take_commands(self) -> bool:
        """Handle what has come; wait for something when there is nothing to do. False after Stop."""
        must_wait = not self._engine.has_work and not self._jobs
        while True:
            try:
                command = self._inbox.get(block=must_wait)
            except Empty:
                return True
            must_wait = False
            if isinstance(command, Add):
                self._add(command)
            elif isinstance(command, Abort):
                self._outputs += self._engine.abort(command.request_id)
            elif isinstance(command, Embed):
                self._embed(command)
            elif isinstance(command, CancelEmbed):
                self._cancel_job(command.call_id)
            elif isinstance(command, ResetPrefixCache):
                self._engine.reset_prefix_cache()
                self._answers.append((command.call_id, None))
            elif isinstance(command, PrepareGrammars):
                self._prepare_grammars()
            else:
                return False

    def _prepare_grammars(self) -> None:
        grammars = self._engine.grammars
        if grammars is not None and not grammars.is_prepared:
            threading.Thread(target=grammars.prepare, name="grammars", daemon=True).start()

    def _add(self, command: Add) -> None:
        try:
            self._engine.add_request(
                unpack_token_ids(command.token_ids),
                command.params,
                command.request_id,
                priority=command.priority,
                tenant=command.tenant,
                cache_salt=command.cache_salt,
                skip_reading_prefix_cache=command.skip_reading_prefix_cache,
                timeout_s=command.timeout_s,
            )
        except RuntimeFault as fault:
            for index in range(command.params.n):
                self._outputs.append(
                    RequestOutput(command.request_id, "", (), finish_reason="error", index=index, error=str(fault))
                )

    def _embed(self, command: Embed) -> None:
        try:
            job = self._engine.embedding_job(unpack_token_ids(command.token_ids), command.pooling)
        except RuntimeFault as fault:
            self._answers.append((command.call_id, fault))
        else:
            self._jobs.append((command.call_id, job))

    def _cancel_job(self, call_id: int) -> None:
        if self._jobs and self._jobs[0][0] == call_id:
            self._jobs[0][1].close()  # only the first one holds blocks
        self._jobs = deque(job for job in self._jobs if job[0] != call_id)

    def _advance_job(self) -> None:
        if not self._jobs:
            return
        call_id, job = self._jobs[0]
        try:
            vector = job.advance()
        except RuntimeFault as fault:
            if fault.scope in ("device", "process"):
                raise
            self._jobs.popleft()
            self._answers.append((call_id, fault))
        else:
            if vector is not None:
                self._jobs.popleft()
                self._answers.append((call_id, vector.tolist()))
