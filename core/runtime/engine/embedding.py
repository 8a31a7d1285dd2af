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

    def forward(self, part: Scheduled, rows: Sequence[int]) -> NDArray[np.float32]:
        """Hidden states after the last norm of the given rows of `part`: float32 [len(rows), hidden_size]."""
        if self._executor is None:
            self._executor = self._make_executor()
        inputs, dims = step_inputs([part], rows, self._block_size)
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
        self._hidden_states = hidden_states
        self._scheduler = scheduler
        self._pooling = pooling
        self._request = Request("embedding", token_ids, SamplingParams(), max_tokens=0)
        self._sum: NDArray[np.float64] | None = None

    def advance(self) -> NDArray[np.float32] | None:
        """Compute one chunk; returns the vector, of length 1, when it was the last. Raises when blocks never come."""
        import numpy as np

        request, scheduler = self._request, self._scheduler
        if not request.block_table and not self._take_blocks():
            return None
        limit = scheduler.pace.limit(len(scheduler.running), 1) if scheduler.running else None
        most = scheduler.max_num_batched_tokens if limit is None else min(limit, scheduler.max_num_batched_tokens)
        start = request.num_computed_tokens
        count = min(request.num_tokens - start, max(most, 1))
        is_mean = self._pooling == "mean"
        try:
            rows = self._hidden_states.forward(
                Scheduled(request, start, count), range(count) if is_mean else [count - 1]
            )
        except BaseException:
            self.close()
            raise
        request.num_computed_tokens += count
        total = rows.sum(axis=0, dtype=np.float64)
        self._sum = total if self._sum is None or not is_mean else self._sum + total
        if request.num_computed_tokens < request.num_tokens:
            return None
        self.close()
        return (self._sum / max(float(np.linalg.norm(self._sum)), 1e-12)).astype(np.float32)

    def close(self) -> None:
        """Give the blocks back."""
        self._scheduler.num_reserved_blocks = 0
        self._scheduler.pool.free(self._request.block_table)

    def _take_blocks(self) -> bool:
        pool = self._scheduler.pool
        needed = pool.blocks_for(self._request.num_tokens)
        if needed <= pool.num_free:
            self._scheduler.num_reserved_blocks = 0
            self._request.block_table = pool.allocate(needed)
            return True
        if not self._scheduler.has_work:
            raise OutOfMemory(f"an embedding needs {needed} KV blocks, {pool.num_free} of {pool.num_blocks} are free")
        self._scheduler.num_reserved_blocks = needed  # or newcomers would take every block that becomes free
        return False
