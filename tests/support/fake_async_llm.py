"""An engine without a model, in the shape of AsyncLLM: scripted text, delays and failures. Fast, and true to the seam."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from runtime.engine.config import EngineConfig
from runtime.engine.request import FinishReason, PositionLogprobs, RequestOutput, RequestTimes, TokenLogprob
from runtime.engine.sampling_params import SamplingParams
from runtime.engine.stats import EngineStats
from runtime.engine.structured import StructuredOutput
from runtime.errors import EngineDied, InvalidArgument, QueueFull
from runtime.tokenizer.byte_tokenizer import ByteTokenizer

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
BLOCK_SIZE = 16
BLOCKS = 1000


class FakeAsyncLLM:
    """Answers every prompt with `text`, one byte a step.

    text          the answer, or a function of the prompt's text
    delay_s       time of a step
    first_delay_s time before the first step
    die_after     tokens after which the engine dies under every request
    fail_after    tokens after which a request fails alone
    queue_limit   more running requests than that raise QueueFull
    """

    def __init__(
        self,
        text: str | Callable[[str], str] = "Hello, world.",
        *,
        delay_s: float = 0.0,
        first_delay_s: float = 0.0,
        die_after: int | None = None,
        fail_after: int | None = None,
        queue_limit: int = 1000,
        max_model_len: int = 512,
    ) -> None:
        self.text = text
        self.delay_s = delay_s
        self.first_delay_s = first_delay_s
        self.die_after = die_after
        self.fail_after = fail_after
        self.queue_limit = queue_limit
        self.config = EngineConfig()
        self.fingerprint = "0123456789abcdef0123456789abcdef"
        self.tokenizer = ByteTokenizer(chat_template=TEMPLATE)
        self.max_model_len = max_model_len
        self.vocab_size = 258
        self.max_num_seqs = 16
        self.default_sampling_params = SamplingParams(temperature=0.0)
        self.has_chat_template = True
        self.status = ("fake engine",)
        self.state: Any = "ready"
        self.running: dict[str, FakeRequest] = {}
        self.seen: list[FakeRequest] = []
        self.finished: Counter[FinishReason] = Counter()
        self.num_resets = 0
        self.num_generated = 0

    @classmethod
    async def start(cls, config: Any, *, process: bool = False, progress: Any = None) -> FakeAsyncLLM:
        return cls()

    def render_chat(self, messages: Any, *, tools: Any = None, **arguments: Any) -> str:
        return self.tokenizer.chat_template(tools=tools).render(messages, tools=tools, **arguments)

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        tenant: str = "",
        cache_salt: str = "",
        skip_reading_prefix_cache: bool = False,
        timeout_s: float | None = None,
    ) -> FakeRequest:
        if not prompt_token_ids:
            raise InvalidArgument("the prompt has no tokens; there is nothing to continue")
        if any(not 0 <= t < self.vocab_size for t in prompt_token_ids):
            raise InvalidArgument("the prompt holds a token id outside of the vocabulary")
        if self.state == "closed":
            raise EngineDied("the engine is closed")
        if len(self.running) >= self.queue_limit:
            raise QueueFull("the queue is full", retry_after_s=2.5)
        request = FakeRequest(self, request_id or f"request-{len(self.seen)}", list(prompt_token_ids), params)
        request.priority, request.tenant, request.timeout_s = priority, tenant, timeout_s
        request.cache_salt, request.skip_reading_prefix_cache = cache_salt, skip_reading_prefix_cache
        self.running[request.request_id] = request
        self.seen.append(request)
        return request

    async def embed(self, token_ids: Sequence[int], pooling: str = "last") -> list[float]:
        await asyncio.sleep(self.delay_s)
        if pooling == "last":
            return [token_ids[-1] / 256, 0.5, -0.25]
        return [sum(token_ids) / len(token_ids) / 256, 0.5, -0.25]

    async def abort(self, request_id: str) -> None:
        request = self.running.get(request_id)
        if request is not None:
            request.is_aborted = True

    async def check_structured(self, structured: StructuredOutput) -> None:
        if structured.text == "refuse me":
            raise InvalidArgument(f"the {structured.kind} cannot be followed: refused by the fake")

    def stats(self) -> EngineStats:
        held = len(self.running)
        return EngineStats(
            num_running=held,
            num_waiting=0,
            num_blocks=BLOCKS,
            num_free_blocks=BLOCKS - held,
            num_cached_blocks=3,
            block_size=BLOCK_SIZE,
            prefix_cache_queries=10,
            prefix_cache_hits=4,
            prompt_tokens=sum(len(r.prompt_token_ids) for r in self.seen),
            generation_tokens=self.num_generated,
            preemptions=0,
            steps=self.num_generated,
            step_seconds=0.5,
            restarts=0,
            requests_finished=dict(self.finished),
        )

    async def reset_prefix_cache(self) -> None:
        self.num_resets += 1

    async def close(self, drain_s: float = 0.0) -> None:
        self.state = "closed"
        deadline = asyncio.get_running_loop().time() + drain_s
        while self.running and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)
        for request in self.running.values():
            request.is_aborted = True


class FakeRequest:
    """The outputs of one request; closing it gives its block back."""

    priority: int
    tenant: str
    cache_salt: str
    skip_reading_prefix_cache: bool
    timeout_s: float | None

    def __init__(
        self, llm: FakeAsyncLLM, request_id: str, prompt_token_ids: list[int], params: SamplingParams | None
    ) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self.params = params or llm.default_sampling_params
        self.is_aborted = False
        self.is_closed = False
        self._llm = llm
        self._outputs = self._run()

    def __aiter__(self) -> FakeRequest:
        return self

    async def __anext__(self) -> RequestOutput:
        return await self._outputs.__anext__()

    async def aclose(self) -> None:
        self.is_closed = True
        await self._outputs.aclose()
        self._llm.running.pop(self.request_id, None)

    async def _run(self) -> Any:
        llm, params = self._llm, self.params
        try:
            prompt = llm.tokenizer.decode(self.prompt_token_ids)
            text = llm.text(prompt) if callable(llm.text) else llm.text
            stops = [text.find(s) for s in params.stop if s in text]
            text = text[: min(stops)] if stops else text
            token_ids = list(text.encode())
            limit = llm.max_model_len - len(self.prompt_token_ids)
            limit = limit if params.max_tokens is None else min(limit, params.max_tokens)
            reason: FinishReason = "length" if len(token_ids) > limit else "stop"
            decoders = [llm.tokenizer.incremental_decoder() for _ in range(params.n)]
            await asyncio.sleep(llm.first_delay_s)
            if not token_ids:
                yield self._output("", (), 0, True, finish_reason=reason)
            for i, token_id in enumerate(token_ids[:limit]):
                await asyncio.sleep(llm.delay_s)
                if llm.die_after is not None and i >= llm.die_after:
                    raise EngineDied("the engine died: killed by signal 9")
                if llm.fail_after is not None and i >= llm.fail_after:
                    yield self._output("", (), 0, False, finish_reason="error", error="the request failed: NaN")
                    return
                if self.is_aborted:
                    yield self._output("", (), 0, False, finish_reason="aborted")
                    return
                is_last = i + 1 == min(len(token_ids), limit)
                for sample in range(params.n):
                    llm.num_generated += 1
                    yield self._output(
                        decoders[sample].push(token_id),
                        (token_id,),
                        sample,
                        i == 0,
                        finish_reason=reason if is_last else None,
                        stop_reason=params.stop[0] if is_last and stops else None,
                    )
        finally:
            llm.running.pop(self.request_id, None)

    def _output(self, text: str, token_ids: tuple[int, ...], index: int, is_first: bool, **more: Any) -> RequestOutput:
        logprobs = None
        if self.params.logprobs is not None and token_ids:
            chosen = TokenLogprob(token_ids[0], -0.5, 1, chr(token_ids[0]))
            top = (chosen, TokenLogprob(65, float("-inf"), 2, "A"))[: self.params.logprobs]
            logprobs = (PositionLogprobs(chosen, top),)
        if more.get("finish_reason") is not None:
            self._llm.finished[more["finish_reason"]] += 1
        prompt = len(self.prompt_token_ids) if is_first else 0
        cached = prompt // BLOCK_SIZE * BLOCK_SIZE
        return RequestOutput(
            self.request_id,
            text,
            token_ids,
            logprobs,
            index=index,
            num_prompt_tokens=prompt,
            num_cached_tokens=cached,
            times=RequestTimes(0.25, 0.5, 1.0, 0, self.params.max_tokens or 100) if more.get("finish_reason") else None,
            **more,
        )
