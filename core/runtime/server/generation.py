"""The engine's work for one HTTP request: one or several prompts, their outputs merged, counted and checked."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

from runtime.engine.request import PositionLogprobs, RequestOutput
from runtime.engine.sampling_params import SamplingParams
from runtime.errors import QueueFull, RuntimeFault
from runtime.server.edge import Terms
from runtime.server.failures import ApiError, too_long
from runtime.server.metrics import SampleClock
from runtime.server.prompt_log import PromptLog
from runtime.server.replies import PromptTokensDetails, Usage
from runtime.server.service import Service

_DEFAULTS = SamplingParams()
_MAX_AHEAD = 256
"""Outputs that wait for a slow reader of several prompts."""


@dataclass
class Sample:
    """One answer as it grows."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: Sequence[PositionLogprobs | None] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, output: RequestOutput) -> None:
        """Take what a step added."""
        self.texts.append(output.text)
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs or ()
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason


class Generation:
    """Requests of the engine that belong to one HTTP request. Sample j of prompt i has the index i * n + j."""

    def __init__(
        self,
        service: Service,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        prefix: str,
        terms: Terms,
    ) -> None:
        self.id = f"{prefix}-{secrets.token_hex(12)}"
        self._service = service
        self._terms = terms
        self.started = time.time()
        self.created = int(self.started)
        self.prompts = prompts
        self.params = params
        self.num_samples = len(prompts) * params.n
        self._clocks = [SampleClock(service.metrics, params.n, time.monotonic()) for _ in prompts]
        self._iterators: list[AsyncIterator[RequestOutput]] = []
        self._request_ids: list[str] = []
        self._num_output_tokens = 0
        self._num_cached_tokens = [0] * len(prompts)

    @classmethod
    async def start(
        cls,
        service: Service,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        prefix: str,
        terms: Terms,
    ) -> Generation:
        """Queue the prompts, all or none; raises what the engine refuses, and ApiError for a prompt without room."""
        llm = service.llm
        for token_ids in prompts:
            if len(token_ids) >= llm.max_model_len:
                raise too_long(len(token_ids), llm.max_model_len, "messages" if prefix == "chatcmpl" else "prompt")
        generation = cls(service, prompts, params, prefix, terms)
        service.generations[generation.id] = generation
        try:
            for i, token_ids in enumerate(prompts):
                request_id = generation.id if len(prompts) == 1 else f"{generation.id}-{i}"
                generation._request_ids.append(request_id)
                generation._iterators.append(
                    llm.generate(
                        token_ids,
                        params,
                        request_id=request_id,
                        priority=terms.priority,
                        tenant=terms.tenant,
                        cache_salt=terms.cache_salt,
                        skip_reading_prefix_cache=terms.skip_reading_prefix_cache,
                        timeout_s=service.settings.request_timeout_s,
                    )
                )
        except BaseException as error:
            if isinstance(error, QueueFull):
                service.metrics.count_rejection(error.limit)
            await generation.close()
            raise
        return generation

    def outputs(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """(index, output) as steps bring them; ends when every sample has finished, and raises when one fails.

        Closing it, or cancelling who reads it, withdraws what is still running.
        """
        log = self._service.prompt_log
        return self._outputs() if log is None else self._logged(log)

    async def _outputs(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        n = self.params.n
        try:
            if len(self._iterators) == 1:
                async for output in self._iterators[0]:
                    self._account(0, output)
                    yield output.index, output
            else:
                async for i, output in self._merged():
                    self._account(i, output)
                    yield i * n + output.index, output
        finally:
            await self.close()

    async def samples(self) -> list[Sample]:
        """Every sample, finished, by index."""
        samples = [Sample() for _ in range(self.num_samples)]
        async with aclosing(self.outputs()) as outputs:
            async for index, output in outputs:
                samples[index].add(output)
        return samples

    def answers_to(self, request_id: str, key: str) -> bool:
        """Whether whoever shows `key` may call it by that name: its id, or the `x-request-id` of its request."""
        return self._terms.key == key and request_id in (self.id, self._terms.request_id)

    async def abort(self) -> None:
        """End what is still running; whoever waits for it is told."""
        for request_id in self._request_ids:
            await self._service.llm.abort(request_id)

    async def close(self) -> None:
        """Withdraw what is still running; harmless afterwards."""
        self._service.generations.pop(self.id, None)
        for iterator in self._iterators:
            await _close(iterator)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        num_prompt_tokens = sum(map(len, self.prompts))
        return Usage(
            prompt_tokens=num_prompt_tokens,
            completion_tokens=self._num_output_tokens,
            total_tokens=num_prompt_tokens + self._num_output_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(self._num_cached_tokens)),
        )

    def _account(self, prompt: int, output: RequestOutput) -> None:
        self._clocks[prompt].see(output)
        self._num_output_tokens += len(output.token_ids)
        if output.num_prompt_tokens and not output.index:  # the other samples find what the first one has computed
            self._num_cached_tokens[prompt] = output.num_cached_tokens
        if output.finish_reason in ("error", "timeout", "aborted"):
            raise _failure(output)

    async def _logged(self, log: PromptLog) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        samples, error = [Sample() for _ in range(self.num_samples)], None
        try:
            async with aclosing(self._outputs()) as outputs:
                async for index, output in outputs:
                    samples[index].add(output)
                    yield index, output
        except (ApiError, RuntimeFault) as failure:
            error = str(failure)
            raise
        finally:
            seconds = time.time() - self.started
            log.write(lambda: self._record(samples, error, seconds))

    def _record(self, samples: Sequence[Sample], error: str | None, seconds: float) -> dict[str, Any]:
        """The line of the prompt log; an answer without a finish_reason was cut off by its client or an error."""
        decode = self._service.llm.tokenizer.decode
        started = datetime.fromtimestamp(self.started, timezone.utc)
        return {
            "time": started.isoformat(timespec="milliseconds"),
            "seconds": round(seconds, 4),
            "request_id": self._terms.request_id,
            "id": self.id,
            "model": self._service.model_name,
            "tenant": self._terms.tenant,
            "priority": self._terms.priority,
            "prompts": [decode(prompt, skip_special=False) for prompt in self.prompts],
            "params": {
                f.name: value
                for f in fields(self.params)
                if (value := getattr(self.params, f.name)) != getattr(_DEFAULTS, f.name)
            },
            "answers": [
                {
                    "text": "".join(sample.texts),
                    "num_tokens": len(sample.token_ids),
                    "finish_reason": sample.finish_reason,
                }
                for sample in samples
            ],
            "num_prompt_tokens": sum(map(len, self.prompts)),
            "num_cached_tokens": sum(self._num_cached_tokens),
            "error": error,
        }

    async def _merged(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        queue: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue(_MAX_AHEAD)

        async def pump(i: int, iterator: AsyncIterator[RequestOutput]) -> None:
            try:
                async for output in iterator:
                    await queue.put((i, output))
                await queue.put((i, None))
            except Exception as error:  # noqa: BLE001  (raised again by the one who reads the queue)
                await queue.put((i, error))

        pumps = [asyncio.ensure_future(pump(i, iterator)) for i, iterator in enumerate(self._iterators)]
        running = len(pumps)
        try:
            while running:
                i, item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield i, item
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


def _failure(output: RequestOutput) -> ApiError:
    if output.finish_reason == "timeout":
        return ApiError(504, output.error or "the request took longer than the server's limit", code="timed_out")
    if output.finish_reason == "aborted":
        text = "the request was withdrawn before it was finished; the server is stopping, or it was aborted"
        return ApiError(503, output.error or text, code="aborted", headers={"retry-after": "1"})
    return ApiError(500, output.error or "the request failed in the engine", code="request_failed")


async def _close(iterator: AsyncIterator[Any]) -> None:
    close = getattr(iterator, "aclose", None)  # an AsyncIterator need not have it; generators do
    if close is not None:
        await close()
