"""Runs one scheduled step on the devices: integers in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runtime.engine.scheduler import Schedule, Scheduled
from runtime.executor import Executor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Runner:
    """Binds the inputs of a step (see `Graph`) and submits it."""

    def __init__(self, executor: Executor, block_size: int) -> None:
        self._executor = executor
        self.block_size = block_size

    def run(self, schedule: Schedule) -> NDArray[np.float32]:
        """Logits [number of parts that reach the end of their request, vocab_size], in the schedule's order."""
        rows, last = [], -1
        for part in schedule.parts:
            last += part.num_scheduled_tokens
            if part.reaches_end:
                rows.append(last)
        # A step made only of unfinished prompts wants no logits; the graph needs at least one row.
        logits = self.forward(schedule.parts, rows or [last])
        return logits[: len(rows)]

    def forward(self, parts: Sequence[Scheduled], rows: Sequence[int]) -> NDArray[np.float32]:
        """Compute `parts` and return the logits of the given rows of the step, float32 [len(rows), vocab_size]."""
        import numpy as np

        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        width = max(len(p.request.block_table) for p in parts)
        table = np.zeros((len(parts), width), np.int32)
        for i, part in enumerate(parts):
            stop = part.start + part.num_scheduled_tokens
            blocks = part.request.block_table
            table[i, : len(blocks)] = blocks
            token_ids += part.request.token_ids_at(part.start, stop)
            positions += range(part.start, stop)
            slots += [
                blocks[p // self.block_size] * self.block_size + p % self.block_size for p in range(part.start, stop)
            ]
            starts.append(len(token_ids))
        inputs: dict[str, Any] = {
            "token_ids": np.array(token_ids, np.int32),
            "positions": np.array(positions, np.int32),
            "query_start_loc": np.array(starts, np.int32),
            "seq_lens": np.array([p.start + p.num_scheduled_tokens for p in parts], np.int32),
            "block_table": table,
            "slot_mapping": np.array(slots, np.int32),
            "logits_rows": np.array(rows, np.int32),
        }
        dims = {"T": len(token_ids), "S": len(parts), "Q": len(parts) + 1, "P": width, "R": len(rows)}
        logits: NDArray[np.float32] = self._executor.run(inputs, dims)["logits"]
        return logits
