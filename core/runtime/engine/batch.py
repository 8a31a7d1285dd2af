"""Runs a list of prompts to their ends, in as few steps as the engine can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runtime.engine.request import Completion, PositionLogprobs, Request, RequestOutput
from runtime.engine.sampling_params import SamplingParams
from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from runtime.engine.engine import Engine


@dataclass(frozen=True)
class Job:
    """A prompt as token ids, how to sample it, its priority, and its text where the caller gave text."""

    token_ids: Sequence[int]
    params: SamplingParams
    priority: int = 0
    prompt: str | None = None


def run_jobs(engine: Engine, jobs: Sequence[Job], max_queued: int, *, raise_errors: bool) -> list[Completion]:
    """A completion for each job, in order. A job that fails has the finish_reason "error", or its error is raised.

    At most `max_queued` wait in the engine at a time. However this ends, no request keeps its blocks.
    """
    samples: list[tuple[Request, ...]] = []
    refused: dict[int, RuntimeFault] = {}
    collected: dict[str, list[RequestOutput]] = {}
    try:
        while len(samples) < len(jobs) or engine.has_work:
            while len(samples) < len(jobs) and len(engine.scheduler.waiting) < max_queued:
                job = jobs[len(samples)]
                try:
                    requests = engine.add_request(job.token_ids, job.params, priority=job.priority)
                    collected[requests[0].request_id] = []
                except RuntimeFault as fault:
                    if raise_errors:
                        raise
                    refused[len(samples)] = fault
                    requests = ()
                samples.append(requests)
            for output in engine.step():
                if output.request_id in collected:
                    collected[output.request_id].append(output)
    finally:
        for request_id in collected:
            engine.abort(request_id)
    if raise_errors:
        for requests in samples:
            for request in requests:
                raise_error(request)
    return [
        _refusal(job, refused[i]) if i in refused else _completions(job, samples[i], collected)
        for i, job in enumerate(jobs)
    ]


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
        prompt_logprobs=outputs[0].prompt_logprobs,
    )
