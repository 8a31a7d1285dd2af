"""The loop: schedule, run, sample, update."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from runtime.engine.constraints import bad_word_ids, only
from runtime.engine.detokenizer import Detokenizer
from runtime.engine.embedding import EmbeddingJob, HiddenStates, Pooling
from runtime.engine.logits_processors import LogitsProcessors
from runtime.engine.request import FINISH_REASONS, FinishReason, PositionLogprobs, Request, RequestOutput, RequestState
from runtime.engine.runner import Runner
from runtime.engine.sampler import Sampled, Sampler
from runtime.engine.sampling_params import SamplingParams
from runtime.engine.scheduler import Schedule, Scheduled, Scheduler
from runtime.engine.stats import EngineStats, StepCounts
from runtime.engine.structured import Grammars, StructuredOutput, TokenMatcher
from runtime.engine.validation import check_request, check_text
from runtime.errors import InvalidArgument, NumericFault, RuntimeFault, Unsupported
from runtime.executor import KeptOutput
from runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Engine:
    """Serves requests from one model on its devices. It belongs to one thread.

    grammars       follows grammars; without it, requests with structured output are refused
    hidden_states  computes embeddings; without it they are refused
    """

    def __init__(
        self,
        *,
        runner: Runner,
        sampler: Sampler,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        vocab_size: int,
        max_model_len: int,
        grammars: Grammars | None = None,
        hidden_states: HiddenStates | None = None,
    ) -> None:
        self.runner = runner
        self.sampler = sampler
        self.scheduler = scheduler
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.grammars = grammars
        self.processors = LogitsProcessors()
        self._hidden_states = hidden_states
        self._samples: dict[str, list[Request]] = {}
        self._detokenizers: dict[Request, Detokenizer] = {}
        self._deadlines: list[tuple[float, int, tuple[Request, ...]]] = []
        self._ids = count()
        self._finished = dict.fromkeys(FINISH_REASONS, 0)
        self._prompt_tokens = self._generation_tokens = 0
        self._prefill_seconds = self._decode_seconds = 0.0
        self._steps = StepCounts()

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return self.scheduler.has_work

    def add_request(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
        *,
        priority: int = 0,
        tenant: str = "",
        cache_salt: str = "",
        skip_reading_prefix_cache: bool = False,
        timeout_s: float | None = None,
    ) -> tuple[Request, ...]:
        """Queue a prompt: one request for each of its `n` samples. Raises InvalidArgument when it can never run.

        tenant                     whom the policy "fair" gives the tokens to
        cache_salt                 prefixes are shared among requests of one salt only
        skip_reading_prefix_cache  compute the whole prompt, whatever is known of it
        """
        params = params.with_()  # a copy, checked again: the caller may change its own
        check_request(prompt_token_ids, params, vocab_size=self.vocab_size, max_model_len=self.max_model_len)
        request_id = request_id or f"request-{next(self._ids)}"
        if request_id in self._samples:
            raise InvalidArgument(f"request id '{request_id}' is in use")
        room = self.max_model_len - len(prompt_token_ids)
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        bad_words = bad_word_ids(params.bad_words, self.tokenizer)
        allowed = None if params.allowed_token_ids is None else only(params.allowed_token_ids, self.vocab_size)
        samples: list[Request] = []
        for index in range(params.n):
            request = Request(request_id, prompt_token_ids, params, max_tokens, index, priority, tenant, cache_salt)
            request.skip_reading_prefix_cache, request.deadline = skip_reading_prefix_cache, deadline
            if samples:
                request.leader, request.prompt_logprobs = samples[0], samples[0].prompt_logprobs
            request.matcher = self._matcher(params.structured)
            request.processors = self.processors.make(params, self.tokenizer)
            request.bad_words, request.allowed = bad_words, allowed
            samples.append(request)
        if len(samples) > 1:
            self.scheduler.can_copy_blocks = self.runner.can_copy_blocks
        for request in samples:
            self._detokenizers[request] = Detokenizer(request, self.tokenizer)
            self.scheduler.add(request)
        self._samples[request_id] = list(samples)
        if deadline is not None:
            self._remember_deadline(deadline, tuple(samples))
        return tuple(samples)

    def step(self) -> list[RequestOutput]:
        """One step over all requests; returns what it added to each.

        A request that the model cannot serve ends with the reason "error"; the others go on. Raises what makes the
        device useless.
        """
        outputs = self._expire()
        schedule = self.scheduler.schedule()
        if schedule.parts:
            started = time.monotonic()
            for part in schedule.parts:
                if part.request.scheduled_s is None:
                    part.request.scheduled_s = started
            outputs += self._run(schedule)
            self._account(schedule, time.monotonic() - started)
        return outputs

    def abort(self, request_id: str) -> list[RequestOutput]:
        """End all samples of a request now; returns their last outputs, none where it is already over."""
        return [self._end(request, "aborted") for request in list(self._samples.get(request_id, ()))]

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position of `token_ids`: float32 [len(token_ids), vocab_size]. Needs an idle engine."""
        import numpy as np

        if self.has_work:
            raise InvalidArgument("logits need an idle engine; finish or abort the running requests first")
        check_text(token_ids, "logits", vocab_size=self.vocab_size, max_model_len=self.max_model_len)
        pool = self.scheduler.pool
        request = Request("logits", token_ids, SamplingParams(), max_tokens=0)
        request.block_table = pool.allocate(pool.blocks_for(len(token_ids)))
        chunk = min(self.scheduler.max_num_batched_tokens, self.scheduler.max_num_logits)
        try:
            parts = []
            for start in range(0, len(token_ids), chunk):
                n = min(chunk, len(token_ids) - start)
                parts.append(self.runner.forward([Scheduled(request, start, n)], range(n)))
            return np.concatenate(parts)
        finally:
            pool.free(request.block_table)

    def embedding_job(self, token_ids: Sequence[int], pooling: Pooling) -> EmbeddingJob:
        """An embedding to be computed between steps. Raises InvalidArgument, or Unsupported."""
        if self._hidden_states is None:
            raise Unsupported("this engine computes no embeddings")
        check_text(token_ids, "an embedding", vocab_size=self.vocab_size, max_model_len=self.max_model_len)
        return EmbeddingJob(self._hidden_states, self.scheduler, token_ids, pooling)

    def reset_prefix_cache(self) -> None:
        """Forget what the blocks of finished requests hold."""
        self.scheduler.pool.reset()

    def stats(self) -> EngineStats:
        """How things are, and what was done since the engine was made."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            block_size=pool.block_size,
            prefix_cache_queries=scheduler.prefix_cache_queries,
            prefix_cache_hits=scheduler.prefix_cache_hits,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            preemptions=scheduler.num_preemptions,
            steps=self._steps.steps,
            step_seconds=self._steps.seconds,
            step_tokens=self._steps.tokens,
            step_sequences=self._steps.sequences,
            steps_by_tokens=tuple(self._steps.by_tokens),
            longest_sequence=self._steps.longest_sequence,
            requests_finished=dict(self._finished),
        )

    def close(self) -> None:
        """Abort what is running and free what was compiled for sampling and for moving blocks."""
        for request_id in list(self._samples):
            self.abort(request_id)
        self.sampler.close()
        self.runner.close()
        if self._hidden_states is not None:
            self._hidden_states.close()

    # --- one step

    def _run(self, schedule: Schedule) -> list[RequestOutput]:
        try:
            self.runner.move_blocks(schedule)
        except RuntimeFault as fault:
            _raise_if_fatal(fault)
            return [self._fail(part.request, fault) for part in schedule.parts]
        try:
            return self._update(schedule.parts, self._sample(schedule.parts))
        except RuntimeFault as fault:
            _raise_if_fatal(fault)
            if len(schedule.parts) == 1:
                return [self._fail(schedule.parts[0].request, fault)]
        # One of them cannot be served: alone, each shows whether it is the one. What a failed step has written is
        # written again.
        outputs = []
        for part in schedule.parts:
            try:
                sampled = self._sample([part])
            except RuntimeFault as fault:
                _raise_if_fatal(fault)
                outputs.append(self._fail(part.request, fault))
            else:
                outputs += self._update([part], sampled)
        return outputs

    def _sample(self, parts: Sequence[Scheduled]) -> list[Sampled]:
        logits = self.runner.run(parts)
        if any(p.scored for p in parts):
            logits = self._score(parts, logits.numpy() if isinstance(logits, KeptOutput) else logits)
        ready = [p.request for p in parts if p.samples]
        return self.sampler.sample(logits, ready) if ready else []

    def _score(self, parts: Sequence[Scheduled], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the rows that tell how probable prompts are; returns the others."""
        rows: list[int] = []
        others: list[int] = []
        scored: list[tuple[Request, int]] = []
        for part in parts:
            rows += range(row := len(rows) + len(others), row + len(part.scored))
            scored += [(part.request, position + 1) for position in part.scored]
            if part.samples:
                others.append(len(rows) + len(others))
        counts = [request.params.prompt_logprobs or 0 for request, _ in scored]
        token_ids = [request.prompt_token_ids[position] for request, position in scored]
        for (request, position), score in zip(scored, self.sampler.score(logits[rows], token_ids, counts), strict=True):
            if score is None:
                request.error = NumericFault(
                    f"request {request.request_id}: the model's logits hold NaN or infinity at token {position - 1}",
                    remedy="check the weights with --check-tensors and the device with runtime doctor",
                )
            elif len(request.prompt_logprobs) == position:  # another sample may have been here already
                request.prompt_logprobs.append(score)
        return logits[others]

    def _update(self, parts: Sequence[Scheduled], sampled: Sequence[Sampled]) -> list[RequestOutput]:
        ready = [p.request for p in parts if p.samples]
        for part in parts:
            self.scheduler.computed(part)
        now = time.monotonic()
        outputs = [
            self._append(request, token, now)
            for request, token in zip(ready, sampled, strict=True)
            if request.error is None
        ]
        for part in parts:
            request = part.request
            if request.error is not None and request.state is not RequestState.FINISHED:
                outputs.append(self._end(request, "error"))
            elif part.reaches_end and not part.samples:
                outputs.append(self._end(request, "length"))
        return outputs

    def _append(self, request: Request, sampled: Sampled, now: float) -> RequestOutput:
        if sampled.error is not None:
            return self._fail(request, sampled.error)
        request.output_token_ids.append(sampled.token_id)
        if request.last_token_s is None:
            request.first_token_s = now
            self._prefill_seconds += now - (request.scheduled_s or now)
        else:
            self._decode_seconds += now - request.last_token_s
        request.last_token_s = now
        self._generation_tokens += 1
        is_complete = False
        if request.matcher is not None:
            try:
                request.matcher.advance(sampled.token_id)
                is_complete = request.matcher.is_stopped
            except RuntimeFault as fault:
                return self._fail(request, fault)
        detokenizer = self._detokenizers[request]
        text = detokenizer.push(sampled.token_id)
        if is_complete and detokenizer.finish_reason is None:
            text += detokenizer.complete()
        if detokenizer.finish_reason is not None:
            self._finish(request, detokenizer.finish_reason)
        is_first = len(request.output_token_ids) == 1
        return RequestOutput(
            request.request_id,
            text,
            (sampled.token_id,),
            None if sampled.logprobs is None else (sampled.logprobs,),
            detokenizer.finish_reason,
            detokenizer.stop_reason,
            request.index,
            None,
            request.num_prompt_tokens if is_first else 0,
            request.num_cached_tokens if is_first else 0,
            seed=request.seed,
            times=None if detokenizer.finish_reason is None else request.times(now),
            prompt_logprobs=_prompt_logprobs(request) if is_first else None,
        )

    def _account(self, schedule: Schedule, seconds: float) -> None:
        prompt_tokens = longest = 0
        for part in schedule.parts:
            longest = max(longest, part.start + part.num_scheduled_tokens)
            n = part.request.num_prompt_tokens
            if part.start < n:
                prompt_tokens += min(n - part.start, part.num_scheduled_tokens)
        self._prompt_tokens += prompt_tokens
        self._steps.add(schedule.num_tokens, len(schedule.parts), longest, seconds)
        num_decoding = schedule.num_decoding
        self.scheduler.pace.record(num_decoding, schedule.num_tokens - num_decoding, seconds)

    # --- ends

    def _remember_deadline(self, deadline: float, samples: tuple[Request, ...]) -> None:
        """Those of finished requests are forgotten when they are most of all: memory follows the requests alive."""
        if len(self._deadlines) > 2 * len(self._samples) + 64:
            alive = [d for d in self._deadlines if any(r.state is not RequestState.FINISHED for r in d[2])]
            heapq.heapify(alive)
            self._deadlines = alive
        heapq.heappush(self._deadlines, (deadline, samples[0].arrival, samples))

    def _expire(self) -> list[RequestOutput]:
        outputs = []
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            _, _, samples = heapq.heappop(self._deadlines)
            outputs += [self._end(r, "timeout") for r in samples if r.state is not RequestState.FINISHED]
        return outputs

    def _fail(self, request: Request, fault: RuntimeFault) -> RequestOutput:
        request.error = fault
        return self._end(request, "error")

    def _end(self, request: Request, reason: FinishReason) -> RequestOutput:
        """End an unfinished request for a reason that is not in its text."""
        text = self._detokenizers[request].flush()
        self._finish(request, reason)
        error = None if request.error is None else str(request.error)
        times = request.times(time.monotonic())
        output = RequestOutput(
            request.request_id,
            text,
            (),
            finish_reason=reason,
            index=request.index,
            error=error,
            seed=request.seed,
            times=times,
        )
        if reason != "length":
            return output
        return replace(  # only the prompt was computed
            output,
            num_prompt_tokens=request.num_prompt_tokens,
            num_cached_tokens=request.num_cached_tokens,
            prompt_logprobs=_prompt_logprobs(request),
        )

    def _finish(self, request: Request, reason: FinishReason) -> None:
        assert request.state is not RequestState.FINISHED
        self.scheduler.finish(request, reason)
        self._finished[reason] += 1
        del self._detokenizers[request]
        samples = self._samples[request.request_id]
        samples.remove(request)
        if not samples:
            del self._samples[request.request_id]

    def _matcher(self, structured: StructuredOutput | None) -> TokenMatcher | None:
        if structured is None:
            return None
        if self.grammars is None:
            raise Unsupported(f"output of the kind {structured.kind} was asked for, and nothing here follows grammars")
        return self.grammars.matcher(structured)


def _prompt_logprobs(request: Request) -> tuple[PositionLogprobs | None, ...] | None:
    return None if request.params.prompt_logprobs is None else tuple(request.prompt_logprobs)


def _raise_if_fatal(fault: RuntimeFault) -> None:
    if fault.scope in ("device", "process"):
        raise fault
