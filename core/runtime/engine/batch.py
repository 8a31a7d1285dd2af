"""Runs lists of prompts and of texts to their ends, in as few steps as the engine can."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runtime.engine.dispatcher import Dispatcher
from runtime.engine.embedding import Pooling, advance_together
from runtime.engine.request import Completion, PositionLogprobs, Request, RequestOutput
from runtime.engine.sampling_params import SamplingParams
from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Job:
    """A prompt as token ids, how to sample it, its priority, and its text where the caller gave text."""

    token_ids: Sequence[int]
    params: SamplingParams
    priority: int = 0
    prompt: str | None = None


class ProgressLine:
    """How many of `total` answers or vectors are there, on a line of stderr that goes away again; silent in pipes."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._is_shown = False
        self._started = self._last = time.monotonic()
        self._num_finished = self._num_tokens = 0

    def update(self, num_finished: int, num_tokens: int) -> None:
        """Count what a step has finished and generated; write at most ten times a second."""
        self._num_finished += num_finished
        self._num_tokens += num_tokens
        now = time.monotonic()
        if now - self._last < 0.1 or not sys.stderr.isatty():
            return
        self._last, self._is_shown = now, True
        line = f"{self._num_finished} of {self._total}"
        if self._num_tokens:
            line += f", {self._num_tokens / (now - self._started):.1f} tokens/s"
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Remove the line."""
        if self._is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def run_jobs(
    dispatcher: Dispatcher,
    jobs: Sequence[Job],
    max_queued: int,
    *,
    raise_errors: bool,
    progress: ProgressLine | None = None,
) -> list[Completion]:
    """A completion for each job, in order. A job that fails has the finish_reason "error", or its error is raised.

    At most `max_queued` wait in the engine at a time. However this ends, no request keeps its blocks.
    """
    engine = dispatcher.engine
    samples: list[tuple[Request, ...]] = []
    refused: dict[int, RuntimeFault] = {}
    collected: dict[str, list[RequestOutput]] = {}
    inbox: list[RequestOutput] = []
    num_unfinished = 0
    try:
        while len(samples) < len(jobs) or num_unfinished:
            while len(samples) < len(jobs) and len(engine.scheduler.waiting) < max_queued:
                job = jobs[len(samples)]
                try:
                    requests = dispatcher.add(job.token_ids, job.params, inbox, priority=job.priority)
                    collected[requests[0].request_id] = []
                except RuntimeFault as fault:
                    if raise_errors:
                        raise
                    refused[len(samples)] = fault
                    requests = ()
                num_unfinished += len(requests)
                samples.append(requests)
            dispatcher.step()
            for output in inbox:
                collected[output.request_id].append(output)
                num_unfinished -= output.finished
            if progress is not None:
                progress.update(sum(o.finished for o in inbox), sum(len(o.token_ids) for o in inbox))
            inbox.clear()
    finally:
        if progress is not None:
            progress.finish()
        for request_id in collected:
            dispatcher.drop(request_id)
    if raise_errors:
        for requests in samples:
            for request in requests:
                raise_error(request)
    return [
        _refusal(job, refused[i]) if i in refused else _completions(job, samples[i], collected)
        for i, job in enumerate(jobs)
    ]


def embed_texts(
    dispatcher: Dispatcher,
    texts: Sequence[Sequence[int]],
    pooling: Pooling,
    *,
    progress: ProgressLine | None = None,
) -> list[NDArray[np.float32]]:
    """A vector [hidden_size] for each text, several in a step; requests that run go on in between."""
    engine = dispatcher.engine
    jobs = [engine.embedding_job(token_ids, pooling) for token_ids in texts]
    vectors: list[NDArray[np.float32] | None] = [None] * len(jobs)
    pending = list(range(len(jobs)))
    try:
        while pending:
            window = pending[: engine.scheduler.max_num_seqs]
            for i, vector in zip(window, advance_together([jobs[i] for i in window])):
                vectors[i] = vector
            unfinished = [i for i in window if vectors[i] is None]
            pending = unfinished + pending[len(window) :]
            if progress is not None:
                progress.update(len(window) - len(unfinished), 0)
            if engine.has_work:
                dispatcher.step()
    finally:
        if progress is not None:
            progress.finish()
        for job in jobs:
            job.close()
    return [vector for vector in vectors if vector is not None]


def raise_error(request: Request) -> None:
    """Raise what made the request fail, if anything did."""
    if request.error is not None:
        raise request.error


def _refusal(job: Job, fault: RuntimeFault) -> Completion:
    return Completion(
        job.prompt, tuple(job.token_ids), "", (), "error", None, None, job.params.seed or 0, 0, str(fault)
    )


def _completions(job: Job, requests: Sequence[Request], collected: dict[str, list[RequestOutput]]) -> Completion:
    outputs = collected[requests[0].request_id]
    first, *others = [_completion(job, r, [o for o in outputs if o.index == r.index]) for r in requests]
    return replace(first, others=tuple(others)) if others else first


def _completion(job: Job, request: Request, outputs: Sequence[RequestOutput]) -> Completion:
    assert request.finish_reason is not None
    logprobs: tuple[PositionLogprobs, ...] | None = None
    if request.params.logprobs is not None:
        logprobs = tuple(p for o in outputs for p in o.logprobs or ())
    return Completion(
        prompt=job.prompt,
        prompt_token_ids=tuple(request.prompt_token_ids),
        text="".join(o.text for o in outputs),
        token_ids=tuple(request.output_token_ids),
        finish_reason=request.finish_reason,
        stop_reason=outputs[-1].stop_reason,
        logprobs=logprobs,
        seed=request.seed,
        num_cached_tokens=request.num_cached_tokens,
        error=None if request.error is None else str(request.error),
        request_id=request.request_id,
        prompt_logprobs=outputs[0].prompt_logprobs,
    )
