"""The interface for servers: one model, many requests at a time, each a stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Literal, NoReturn
from weakref import WeakValueDictionary

from runtime.engine.config import EngineConfig
from runtime.engine.embedding import Pooling
from runtime.engine.files import OpenedModel, open_for_engine
from runtime.engine.links import Link, ProcessLink, ThreadLink
from runtime.engine.loading import Progress as ProgressCallback
from runtime.engine.loading import render_chat
from runtime.engine.logits_processors import LogitsProcessors
from runtime.engine.messages import (
    Abort,
    Add,
    Batch,
    CancelEmbed,
    Embed,
    Failed,
    Message,
    PrepareGrammars,
    Progress,
    Ready,
    ResetPrefixCache,
    pack_token_ids,
)
from runtime.engine.request_stream import RequestStream
from runtime.engine.sampling_params import SamplingParams
from runtime.engine.stats import EngineStats
from runtime.engine.structured import Grammars, StructuredOutput
from runtime.engine.validation import check_request, check_text
from runtime.engine.weight_cache import content_digest
from runtime.errors import EngineDied, InvalidArgument, QueueFull
from runtime.tokenizer import Tokenizer

State = Literal["starting", "ready", "restarting", "stuck", "closed"]
MAX_RESTARTS = 5
"""An engine that dies so often without serving anything in between is not started again."""
_BACKOFF_S = 0.5
_ABORT_S = 2.0
"""So long `close` waits for the last outputs of what it aborts: a step or two."""
_log = logging.getLogger("runtime.engine")


class AsyncLLM:
    """A model behind an event loop. The engine runs in a thread, or in a process that is started again when it dies.

    Example::

        llm = await AsyncLLM.start(EngineConfig(model="model.gguf"), process=True)
        async for output in llm.generate(llm.tokenizer.encode("Once upon a time")):
            print(output.text, end="")
        await llm.close()
    """

    def __init__(
        self, config: EngineConfig, model: OpenedModel, *, process: bool, progress: ProgressCallback | None
    ) -> None:
        """Use `start`."""
        self.config = config
        self._model = model
        self._in_process = process
        self._progress = progress
        self.tokenizer: Tokenizer = model.tokenizer
        self.default_sampling_params: SamplingParams = model.default_sampling
        self.has_chat_template = bool(config.chat_template or self.tokenizer.chat_templates)
        self.max_model_len = self.vocab_size = self.max_num_seqs = 0
        self.status: tuple[str, ...] = ()
        self.fingerprint = ""
        """Of the content of the model's files, by samples: the same wherever they lie."""
        self.stuck_report = ""
        """What the watchdog last said: how long a step took, and the stack of the engine's threads."""
        self._state: State = "starting"
        self._link: Link
        self._ready: asyncio.Future[Ready]
        self._streams: WeakValueDictionary[str, RequestStream] = WeakValueDictionary()
        """Of unfinished requests; whoever drops a stream ends its request."""
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._ids = count()
        self._stats = self._earlier = EngineStats()
        self._last_sign = time.monotonic()
        self._deaths = 0
        self._grammars: Grammars | None = None
        self._processors = LogitsProcessors()
        self._tasks: set[asyncio.Task[None]] = set()
        self._death: EngineDied | None = None
        self._is_closing = False

    @classmethod
    async def start(
        cls, config: EngineConfig, *, process: bool = False, progress: ProgressCallback | None = None
    ) -> AsyncLLM:
        """Load the model. With `process`, this process opens its header only. Raises whatever the loading raises."""
        model = await asyncio.to_thread(open_for_engine, config.model)
        llm: AsyncLLM | None = None
        try:
            await asyncio.to_thread(lambda: model.tokenizer)
            llm = cls(config, model, process=process, progress=progress)
            llm.fingerprint = await asyncio.to_thread(content_digest, model.file.files)
            llm._adopt(await llm._connect())
            llm._start_task(llm._watch())
        except BaseException:
            if llm is not None:
                await llm._link.stop()
            model.file.close()
            raise
        return llm

    @property
    def state(self) -> State:
        """How it is: only "ready" and "stuck" take requests."""
        return self._state

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] | None = None, **template_arguments: Any
    ) -> str:
        """The text of a conversation as the model's template writes it, ready for the answer."""
        return render_chat(self.tokenizer, self.config.chat_template, messages, tools=tools, **template_arguments)

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        tenant: str = "",
        cache_salt: str = "",
        skip_reading_prefix_cache: bool = False,
        timeout_s: float | None = None,
    ) -> RequestStream:
        """Send a request; the result yields a RequestOutput whenever a step adds to it.

        priority                   smaller runs first, where the policy is "priority"
        tenant                     whom the policy "fair" gives the tokens to
        cache_salt                 prefixes are shared among requests of one salt only
        skip_reading_prefix_cache  compute the whole prompt, whatever is known of it
        timeout_s                  seconds until it ends with the reason "timeout"

        Raises at once: InvalidArgument for a request that can never run, QueueFull, EngineDied. While it runs,
        EngineDied comes out of the iteration. Closing the iterator, or cancelling the task that waits for it, aborts
        the request within one step.
        """
        params = (sampling_params or self.default_sampling_params).with_()  # a copy: the caller's can change
        check_request(prompt_token_ids, params, vocab_size=self.vocab_size, max_model_len=self.max_model_len)
        request_id = request_id or f"request-{next(self._ids)}"
        if request_id in self._streams:
            raise InvalidArgument(f"request id '{request_id}' is in use")
        if params.structured is not None:
            self._known_grammars().check(params.structured)
        self._processors.check(params, self.tokenizer, in_process=self._in_process)
        self._check_alive()
        self._check_room(params.n, len(prompt_token_ids))
        stream = RequestStream(request_id, params.n, self._abandon, num_prompt_tokens=len(prompt_token_ids))
        token_ids = pack_token_ids(prompt_token_ids)
        self._send(
            Add(request_id, token_ids, params, priority, tenant, cache_salt, skip_reading_prefix_cache, timeout_s)
        )
        self._streams[request_id] = stream
        return stream

    async def check_structured(self, structured: StructuredOutput) -> None:
        """Raise InvalidArgument unless all of a grammar can be enforced; Unsupported without llguidance.

        `generate` does the same, in the thread of the event loop. The first call may take seconds.
        """
        grammars = self._known_grammars()
        if not grammars.is_prepared:
            self._send(PrepareGrammars())
        await asyncio.to_thread(grammars.check, structured)

    async def embed(self, token_ids: Sequence[int], pooling: Pooling = "last") -> list[float]:
        """The hidden state after the last norm, of the last token or the mean of all, scaled to length 1."""
        check_text(token_ids, "an embedding", vocab_size=self.vocab_size, max_model_len=self.max_model_len)
        self._check_alive()
        call_id = next(self._ids)
        try:
            vector: list[float] = await self._call(call_id, Embed(call_id, pack_token_ids(token_ids), pooling))
        except asyncio.CancelledError:
            self._send(CancelEmbed(call_id))
            raise
        return vector

    async def abort(self, request_id: str) -> None:
        """End a request; its stream ends with the reason "aborted". One that is over is left alone."""
        if request_id in self._streams:
            self._send(Abort(request_id))

    def stats(self) -> EngineStats:
        """The engine's state after its last step, and what was done since the start, restarts included."""
        return self._stats.plus_counters(self._earlier)

    async def reset_prefix_cache(self) -> None:
        """Forget what the blocks of finished requests hold."""
        self._check_alive()
        call_id = next(self._ids)
        await self._call(call_id, ResetPrefixCache(call_id))

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, let those that run go on for up to `drain_s`, abort the rest, free everything."""
        if self._is_closing:
            return
        self._is_closing, self._state = True, "closed"
        self._death = EngineDied("the engine is shutting down")
        deadline = time.monotonic() + drain_s
        await self._until_idle(deadline)
        for request_id in list(self._streams):
            self._link.send(Abort(request_id))
        await self._until_idle(time.monotonic() + _ABORT_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.stop()
        self._fail_all(self._death)
        self._model.file.close()

    async def _until_idle(self, deadline: float) -> None:
        while self._streams and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    # --- the way to the engine

    def _send(self, command: Add | Abort | Embed | CancelEmbed | ResetPrefixCache | PrepareGrammars) -> None:
        if not self._streams and not self._calls:
            self._last_sign = time.monotonic()
        self._link.send(command)

    async def _call(self, call_id: int, command: Embed | ResetPrefixCache) -> Any:
        answer = asyncio.get_running_loop().create_future()
        self._send(command)
        self._calls[call_id] = answer
        try:
            return await answer
        finally:
            self._calls.pop(call_id, None)

    def _abandon(self, request_id: str) -> None:
        """The caller has gone away."""
        self._streams.pop(request_id, None)
        self._send(Abort(request_id))

    def _known_grammars(self) -> Grammars:
        if self._grammars is None:
            self._grammars = Grammars(self.tokenizer, self.vocab_size)
        return self._grammars

    def _check_alive(self) -> None:
        if self._state not in ("ready", "stuck"):
            raise self._death or EngineDied(f"the engine is {self._state}")

    def _check_room(self, num_samples: int, num_prompt_tokens: int) -> None:
        streams, limits = list(self._streams.values()), self.config
        waiting = sum(s.num_unfinished for s in streams) - self.max_num_seqs
        if waiting + num_samples > limits.max_queued_requests:
            self._refuse(f"{max(waiting, 0)} requests wait, {limits.max_queued_requests} may", "max_queued_requests")
        tokens = sum(s.num_prompt_tokens for s in streams if not s.has_begun)
        if limits.max_queued_tokens is not None and tokens and tokens + num_prompt_tokens > limits.max_queued_tokens:
            what = f"{tokens} tokens of prompts wait and {num_prompt_tokens} came, {limits.max_queued_tokens} may"
            self._refuse(what, "max_queued_tokens")

    def _refuse(self, what: str, limit: Literal["max_queued_requests", "max_queued_tokens"]) -> NoReturn:
        raise QueueFull(f"{what} ({limit})", remedy="try again later", retry_after_s=self._retry_after_s(), limit=limit)

    def _retry_after_s(self) -> float:
        """About the time in which the engine has so far finished a request."""
        stats = self.stats()
        finished = sum(stats.requests_finished.values())
        return min(max(stats.step_seconds / finished if finished else 1.0, 1.0), 60.0)

    # --- what comes back

    def _deliver(self, message: Message) -> None:
        self._last_sign = time.monotonic()
        if isinstance(message, Batch):
            self._deliver_batch(message)
        elif isinstance(message, Progress):
            if self._progress is not None:
                self._progress(message.done, message.total)
        elif isinstance(message, Ready):
            if not self._ready.done():
                self._ready.set_result(message)
        else:
            self._died(message)

    def _deliver_batch(self, batch: Batch) -> None:
        if self._state == "stuck":
            self._state = "ready"
        self._stats = batch.stats
        self._deaths = 0
        for output in batch.outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.put(output)
                if not stream.num_unfinished:
                    del self._streams[output.request_id]
        for call_id, value in batch.answers:
            answer = self._calls.get(call_id)
            if answer is not None and not answer.done():
                if isinstance(value, BaseException):
                    answer.set_exception(value)
                else:
                    answer.set_result(value)

    def _died(self, failure: Failed) -> None:
        if not self._ready.done():
            self._ready.set_exception(_start_error(failure))
            return
        if self._is_closing:
            return
        _log.error("%s\n%s", failure.error, failure.stack)
        self._deaths += 1
        self._earlier = replace(self.stats(), restarts=self._earlier.restarts + 1)
        self._stats = EngineStats()
        wait_s = _BACKOFF_S * 2 ** (self._deaths - 1)
        is_last = not self._in_process or self._deaths > MAX_RESTARTS
        what = f"the engine died: {failure.error}"
        self._death = EngineDied(what, retry_after_s=wait_s + 1)
        self._fail_all(self._death)
        if is_last:
            self._give_up(what)
        else:
            self._state = "restarting"
            self._start_task(self._restart(wait_s))

    def _give_up(self, what: str) -> None:
        self._state = "closed"
        remedy = f"it was started again {MAX_RESTARTS} times" if self._in_process else "load the model anew"
        self._death = EngineDied(what, remedy=remedy)

    def _fail_all(self, error: EngineDied) -> None:
        for stream in list(self._streams.values()):
            stream.fail(error)
        self._streams.clear()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(error)

    # --- starting, again if need be, and watching

    async def _connect(self) -> Ready:
        self._ready = asyncio.get_running_loop().create_future()
        self._link = (
            ProcessLink(self.config, self._deliver)
            if self._in_process
            else ThreadLink(self.config, self._deliver, self._model)
        )
        return await self._ready

    def _adopt(self, ready: Ready) -> None:
        self.max_model_len, self.vocab_size = ready.max_model_len, ready.vocab_size
        self.max_num_seqs, self.status = ready.max_num_seqs, ready.status
        self._stats = ready.stats
        self._state, self._death = "ready", None

    async def _restart(self, wait_s: float) -> None:
        while True:
            await asyncio.sleep(wait_s)
            await self._link.stop()
            try:
                self._adopt(await self._connect())
            except Exception as error:  # noqa: BLE001  whatever keeps it from starting counts as one more death
                _log.error("the engine does not start: %s", error)
                self._deaths += 1
                wait_s *= 2
                if self._deaths > MAX_RESTARTS:
                    self._give_up(f"the engine does not start: {error}")
                    return
            else:
                _log.info("the engine was started again")
                return

    async def _watch(self) -> None:
        """Report a step that takes too long, with the stack of the engine's threads."""
        limit_s = self.config.step_timeout_s
        while True:
            await asyncio.sleep(min(limit_s / 4, 1.0))
            waited = time.monotonic() - self._last_sign
            if self._state == "ready" and (self._streams or self._calls) and waited > limit_s:
                self._state = "stuck"
                stack = await asyncio.to_thread(self._link.stack)
                self.stuck_report = f"a step has taken {waited:.1f} s so far, the limit is {limit_s:g} s\n{stack}"
                _log.error("%s", self.stuck_report)

    def _start_task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _start_error(failure: Failed) -> BaseException:
    """Why the engine did not start: the fault that the loading raised, or that its process ended."""
    if isinstance(failure.error, ChildProcessError):
        _log.error("%s\n%s", failure.error, failure.stack)
        return EngineDied(f"the engine did not start: {failure.error}", remedy="its messages are on stderr")
    return failure.error
