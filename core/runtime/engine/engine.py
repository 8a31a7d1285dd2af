"""The loop: schedule, run, sample, update."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING

from runtime.engine.detokenizer import Detokenizer
from runtime.engine.request import Request, RequestOutput, RequestState
from runtime.engine.runner import Runner
from runtime.engine.sampler import Sampled, Sampler
from runtime.engine.sampling_params import SamplingParams
from runtime.engine.scheduler import Schedule, Scheduled, Scheduler
from runtime.errors import InvalidArgument
from runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Engine:
    """Serves requests from one model on its devices."""

    def __init__(
        self,
        *,
        runner: Runner,
        sampler: Sampler,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        vocab_size: int,
        max_model_len: int,
    ) -> None:
        self.runner = runner
        self.sampler = sampler
        self.scheduler = scheduler
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self._requests: dict[str, Request] = {}
        self._detokenizers: dict[str, Detokenizer] = {}
        self._ids = count()

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return self.scheduler.has_work

    def add_request(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, request_id: str | None = None
    ) -> Request:
        """Queue a request; raises InvalidArgument when it can never run."""
        n = len(prompt_token_ids)
        if n == 0:
            raise InvalidArgument("the prompt has no tokens; there is nothing to continue")
        self._check_token_ids(prompt_token_ids, "the prompt")
        self._check_token_ids(params.logit_bias, "logit_bias")
        if n >= self.max_model_len:
            raise InvalidArgument(
                f"prompt has {n} tokens, context is {self.max_model_len} and at least one must be left for the answer",
                remedy=f"shorten it or start with a context of more than {n} (--ctx, max_model_len)",
            )
        room = self.max_model_len - n
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        request = Request(request_id or f"request-{next(self._ids)}", prompt_token_ids, params, max_tokens)
        if request.request_id in self._requests:
            raise InvalidArgument(f"request id '{request.request_id}' is in use")
        self._requests[request.request_id] = request
        self._detokenizers[request.request_id] = Detokenizer(request, self.tokenizer)
        self.scheduler.add(request)
        return request

    def step(self) -> list[RequestOutput]:
        """One step over all requests; returns what it added to each."""
        schedule = self.scheduler.schedule()
        sampled = self._sample(schedule)
        return self._update(schedule, sampled)

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now; returns its last output, or None when it is already over."""
        request = self._requests.get(request_id)
        if request is None or request.state is RequestState.FINISHED:
            return None
        text = self._detokenizers[request_id].flush()
        self.scheduler.finish(request, "aborted")
        self._forget(request)
        return RequestOutput(request_id, text, (), finish_reason="aborted")

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position of `token_ids`: float32 [len(token_ids), vocab_size]. Needs an idle engine."""
        import numpy as np

        if self.has_work:
            raise InvalidArgument("logits need an idle engine; finish or abort the running requests first")
        if not 0 < len(token_ids) <= self.max_model_len:
            raise InvalidArgument(
                f"logits of {len(token_ids)} tokens: it must be 1 .. {self.max_model_len} (the context)"
            )
        self._check_token_ids(token_ids, "the text")
        pool = self.scheduler.pool
        request = Request("logits", token_ids, SamplingParams(), max_tokens=0)
        request.block_table = pool.allocate(pool.blocks_for(len(token_ids)))
        chunk = min(self.scheduler.max_num_batched_tokens, self.scheduler.max_num_seqs)
        try:
            parts = []
            for start in range(0, len(token_ids), chunk):
                n = min(chunk, len(token_ids) - start)
                parts.append(self.runner.forward([Scheduled(request, start, n)], range(n)))
            return np.concatenate(parts)
        finally:
            pool.free(request.block_table)

    def close(self) -> None:
        """Abort what is running and free the sampler."""
        for request_id in list(self._requests):
            self.abort(request_id)
        self.sampler.close()

    def _sample(self, schedule: Schedule) -> list[Sampled]:
        if not schedule.parts:
            return []
        logits = self.runner.run(schedule)
        ready = [p.request for p in schedule.parts if p.reaches_end]
        return self.sampler.sample(logits, ready) if ready else []

    def _update(self, schedule: Schedule, sampled: Sequence[Sampled]) -> list[RequestOutput]:
        outputs = []
        tokens = iter(sampled)
        for part in schedule.parts:
            ready = part.reaches_end
            part.request.num_computed_tokens += part.num_scheduled_tokens
            if ready:
                outputs.append(self._append(part.request, next(tokens)))
        return outputs

    def _append(self, request: Request, sampled: Sampled) -> RequestOutput:
        request.output_token_ids.append(sampled.token_id)
        detokenizer = self._detokenizers[request.request_id]
        text = detokenizer.push(sampled.token_id)
        if detokenizer.finish_reason is not None:
            self.scheduler.finish(request, detokenizer.finish_reason)
            self._forget(request)
        return RequestOutput(
            request.request_id,
            text,
            (sampled.token_id,),
            None if sampled.logprobs is None else (sampled.logprobs,),
            detokenizer.finish_reason,
            detokenizer.stop_reason,
        )

    def _forget(self, request: Request) -> None:
        del self._requests[request.request_id]
        del self._detokenizers[request.request_id]

    def _check_token_ids(self, token_ids: Iterable[int], what: str) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidArgument(
                    f"{what} holds token id {token_id}; the vocabulary has ids 0 .. {self.vocab_size - 1}"
                )
