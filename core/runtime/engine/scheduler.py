"""Decides which tokens the next step computes. It handles integers only."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from runtime.engine.blocks import BlockPool
from runtime.engine.request import FinishReason, Request, RequestState


@dataclass(frozen=True)
class Scheduled:
    """One request's part of a step: tokens at positions start .. start + num_scheduled_tokens - 1."""

    request: Request
    start: int
    num_scheduled_tokens: int

    @property
    def reaches_end(self) -> bool:
        """Whether the step computes the request's last token, so that the next one can be sampled."""
        return self.start + self.num_scheduled_tokens == self.request.num_tokens


@dataclass(frozen=True)
class Schedule:
    """The parts of one step, in the order of their rows."""

    parts: tuple[Scheduled, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the step."""
        return sum(p.num_scheduled_tokens for p in self.parts)


class Scheduler:
    """First come, first served, with prompts cut into chunks.

    A request is admitted when blocks for its longest possible length are free, so that none can run out half way.
    Decoding requests come first in a step; what is left of `max_num_batched_tokens` goes to prompts.
    """

    def __init__(self, pool: BlockPool, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def schedule(self) -> Schedule:
        """Admit what fits and share the step's tokens out."""
        self._admit()
        budget = self.max_num_batched_tokens
        parts = []
        for request in sorted(self.running, key=lambda r: r.num_tokens - r.num_computed_tokens > 1):
            count = min(request.num_tokens - request.num_computed_tokens, budget)
            if count == 0:
                break
            parts.append(Scheduled(request, request.num_computed_tokens, count))
            budget -= count
        return Schedule(tuple(parts))

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request in whatever state it is and take its blocks back; finishing twice is harmless."""
        if request.state is RequestState.FINISHED:
            return
        if request.state is RequestState.WAITING:
            self.waiting.remove(request)
        else:
            self.running.remove(request)
        request.move_to(RequestState.FINISHED)
        request.finish_reason = reason
        self.pool.free(request.block_table)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            needed = self.pool.blocks_for(request.num_prompt_tokens + request.max_tokens)
            if needed > self.pool.num_free:
                return
            self.waiting.popleft()
            request.block_table = self.pool.allocate(needed)
            request.move_to(RequestState.RUNNING)
            self.running.append(request)
