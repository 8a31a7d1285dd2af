"""Texts as vectors: the hidden states after a decoder's last norm, pooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from runtime.engine.request import Request
from runtime.engine.runner import step_inputs
from runtime.engine.sampling_params import SamplingParams
from runtime.engine.scheduler import Scheduled, Scheduler
from runtime.errors import InvalidArgument, OutOfMemory
from runtime.executor import Executor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Pooling = Literal["mean", "last"]


class HiddenStates:
    """Computes hidden states with a graph of its own on the weights that are loaded; it is compiled on first use."""

    def __init__(self, make_executor: Callable[[], Executor], block_size: int) -> None:
        self._make_executor = make_executor
        self._block_size = block_size
        self._executor: Executor | None = None

    def forward(self, parts: Sequence[Scheduled], rows: Sequence[int]) -> NDArray[np.float32]:
        """Hidden states after the last norm of the given rows of a step: float32 [len(rows), hidden_size]."""
        if self._executor is None:
            self._executor = self._make_executor()
        inputs, dims = step_inputs(parts, rows, self._block_size)
        hidden: NDArray[np.float32] = self._executor.run(inputs, dims)["hidden"]
        return hidden

    def close(self) -> None:
        """Free what was compiled."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None


class EmbeddingJob:
    """One text on its way to a vector, chunk by chunk, so that requests go on in between.

    mean  the mean of the hidden states of all tokens
    last  the hidden state of the last token
    """

    def __init__(
        self, hidden_states: HiddenStates, scheduler: Scheduler, token_ids: Sequence[int], pooling: Pooling
    ) -> None:
        if pooling not in ("mean", "last"):
            raise InvalidArgument(f"pooling = {pooling!r}: it must be mean or last")
        self.hidden_states = hidden_states
        self.scheduler = scheduler
        self._pooling = pooling
        self._request = Request("embedding", token_ids, SamplingParams(), max_tokens=0)
        self._sum: NDArray[np.float64] | None = None

    def advance(self) -> NDArray[np.float32] | None:
        """Compute one chunk; returns the vector, of length 1, when it was the last. Raises when blocks never come."""
        (vector,) = advance_together([self])
        return vector

    def close(self) -> None:
        """Give the blocks back."""
        self.scheduler.num_reserved_blocks = 0
        self.scheduler.pool.free(self._request.block_table)

    def next_chunk(self, most: int, *, others_hold_blocks: bool) -> Scheduled | None:
        """The next tokens to compute, up to `most`; None while there are no blocks for the text.

        Raises OutOfMemory when there never will be: nothing that runs, and no other text, will give blocks back.
        """
        request = self._request
        if not request.block_table and not self._take_blocks(others_hold_blocks):
            return None
        start = request.num_computed_tokens
        return Scheduled(request, start, min(request.num_tokens - start, most))

    def rows_of(self, chunk: Scheduled, first: int) -> Sequence[int]:
        """Rows of a step that are wanted of `chunk`, which begins at the row `first`."""
        stop = first + chunk.num_scheduled_tokens
        return range(first if self._pooling == "mean" else stop - 1, stop)

    def take(self, chunk: Scheduled, rows: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Take the hidden states of the rows of `chunk`; returns the vector, of length 1, when it was the last."""
        import numpy as np

        self._request.num_computed_tokens += chunk.num_scheduled_tokens
        total = rows.sum(axis=0, dtype=np.float64)
        self._sum = total if self._sum is None or self._pooling == "last" else self._sum + total
        if self._request.num_computed_tokens < self._request.num_tokens:
            return None
        self.close()
        return (self._sum / max(float(np.linalg.norm(self._sum)), 1e-12)).astype(np.float32)

    def _take_blocks(self, others_hold_blocks: bool) -> bool:
        pool = self.scheduler.pool
        needed = pool.blocks_for(self._request.num_tokens)
        if needed <= pool.num_free:
            self.scheduler.num_reserved_blocks = 0
            self._request.block_table = pool.allocate(needed)
            return True
        if not self.scheduler.has_work and not others_hold_blocks:
            raise OutOfMemory(f"an embedding needs {needed} KV blocks, {pool.num_free} of {pool.num_blocks} are free")
        self.scheduler.num_reserved_blocks = needed  # or newcomers would take every block that becomes free
        return False


def advance_together(jobs: Sequence[EmbeddingJob]) -> list[NDArray[np.float32] | None]:
    """One step over jobs of one engine, the first ones first; for each its vector, if that is complete now.

    As many jobs take part as there are seats, tokens and blocks for. Where the step fails, all of them have failed.
    """
    first = jobs[0]
    scheduler = first.scheduler
    limit = scheduler.pace.limit(len(scheduler.running), 1) if scheduler.running else None
    budget = scheduler.max_num_batched_tokens if limit is None else min(limit, scheduler.max_num_batched_tokens)
    budget = max(budget, 1)
    chunks: list[Scheduled] = []
    wanted: list[Sequence[int]] = []
    num_tokens = 0
    for job in jobs[: scheduler.max_num_seqs]:
        chunk = job.next_chunk(budget - num_tokens, others_hold_blocks=bool(chunks)) if num_tokens < budget else None
        if chunk is None:
            break
        chunks.append(chunk)
        wanted.append(job.rows_of(chunk, num_tokens))
        num_tokens += chunk.num_scheduled_tokens
    vectors: list[NDArray[np.float32] | None] = [None] * len(jobs)
    if not chunks:
        return vectors
    try:
        rows = first.hidden_states.forward(chunks, [row for rows in wanted for row in rows])
    except BaseException:
        for job in jobs[: len(chunks)]:
            job.close()
        raise
    start = 0
    for i, chunk in enumerate(chunks):
        vectors[i] = jobs[i].take(chunk, rows[start : start + len(wanted[i])])
        start += len(wanted[i])
    return vectors
