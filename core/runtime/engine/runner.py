"""Runs one scheduled step on the devices: integers in, logits out, which stay there until somebody wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runtime.engine.block_mover import BlockMover
from runtime.engine.request import Request
from runtime.engine.scheduler import Schedule, Scheduled
from runtime.executor import Executor, KeptOutput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HOST_POOL = "host"
"""The memory pool of devices that compute in the host's memory; see `Device.memory`."""


class Runner:
    """Binds the inputs of a step (see `build_graph`) and submits it.

    mover  copies and moves KV blocks; without one, schedules must not ask for it
    """

    def __init__(self, executor: Executor, block_size: int, mover: BlockMover | None = None) -> None:
        self._executor = executor
        self.block_size = block_size
        self._mover = mover
        self._is_on_host: bool | None = None

    @property
    def can_copy_blocks(self) -> bool:
        """Whether schedules may ask for copies of blocks."""
        return self._mover is not None and self._mover.can_copy

    def move_blocks(self, schedule: Schedule) -> None:
        """What must happen to blocks before the parts of `schedule` are computed."""
        for moved in schedule.swap_out:
            assert self._mover is not None
            moved.request.swapped = self._mover.export(moved.block_ids)
        for moved in schedule.swap_in:
            assert self._mover is not None
            self._mover.restore(moved.block_ids, moved.request.swapped)
            moved.request.swapped = None
        if schedule.block_copies:
            assert self._mover is not None
            self._mover.copy(schedule.block_copies)

    def run(self, parts: Sequence[Scheduled]) -> KeptOutput | NDArray[np.float32]:
        """Logits: of each part the positions `scored`, then the last one if it `samples`.

        float32 [number of such rows, vocab_size]; where there is none, one row that means nothing. They stay on their
        device unless it computes in the host's memory, where fetching them is a copy at most.
        """
        rows: list[int] = []
        last = -1
        for part in parts:
            first = last + 1
            last += part.num_scheduled_tokens
            rows += [first + position - part.start for position in part.scored]
            if part.samples:
                rows.append(last)
        # A step made only of unfinished prompts wants no logits; the graph needs at least one row.
        kept = self.compute(parts, rows or [last])
        if self._is_on_host is None:
            self._is_on_host = HOST_POOL in kept.device.memory()
        return kept.numpy() if self._is_on_host else kept

    def compute(self, parts: Sequence[Scheduled], rows: Sequence[int]) -> KeptOutput:
        """Compute `parts`; the logits of the given rows of the step stay on their device until the next step."""
        inputs, dims = step_inputs(parts, rows, self.block_size)
        _, kept = self._executor.run_keeping(("logits",), inputs, dims)
        return kept["logits"]

    def forward(self, parts: Sequence[Scheduled], rows: Sequence[int]) -> NDArray[np.float32]:
        """Compute `parts` and return the logits of the given rows of the step, float32 [len(rows), vocab_size]."""
        logits: NDArray[np.float32] = self.compute(parts, rows).numpy()
        return logits

    def close(self) -> None:
        """Free what was compiled for moving blocks."""
        if self._mover is not None:
            self._mover.close()


def step_inputs(
    parts: Sequence[Scheduled], rows: Sequence[int], block_size: int
) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """The inputs of a step and the sizes of its dimensions."""
    import numpy as np

    num_seqs, num_tokens = len(parts), sum(p.num_scheduled_tokens for p in parts)
    tables = [_block_array(p.request) for p in parts]
    width = max(map(len, tables))
    block_table = np.zeros((num_seqs, width), np.int32)
    token_ids, positions, slots = (np.empty(num_tokens, np.int32) for _ in range(3))
    starts, seq_lens = np.zeros(num_seqs + 1, np.int32), np.empty(num_seqs, np.int32)
    row = 0
    for i, part in enumerate(parts):
        request, start, count, table = part.request, part.start, part.num_scheduled_tokens, tables[i]
        block_table[i, : len(table)] = table
        if count == 1:
            token_ids[row] = _token_id_at(request, start)
            positions[row] = start
            slots[row] = request.block_table[start // block_size] * block_size + start % block_size
        else:
            here = np.arange(start, start + count, dtype=np.int32)
            token_ids[row : row + count] = request.token_ids_at(start, start + count)
            positions[row : row + count] = here
            slots[row : row + count] = table[here // block_size] * block_size + here % block_size
        row += count
        starts[i + 1], seq_lens[i] = row, start + count
    inputs: dict[str, NDArray[Any]] = {
        "token_ids": token_ids,
        "positions": positions,
        "query_start_loc": starts,
        "seq_lens": seq_lens,
        "block_table": block_table,
        "slot_mapping": slots,
        "logits_rows": np.array(rows, np.int32),
    }
    return inputs, {"T": num_tokens, "S": num_seqs, "Q": num_seqs + 1, "P": width, "R": len(rows)}


def _token_id_at(request: Request, position: int) -> int:
    n = len(request.prompt_token_ids)
    return request.output_token_ids[position - n] if position >= n else request.prompt_token_ids[position]


def _block_array(request: Request) -> NDArray[np.int32]:
    """The block table as an array, made again only when it has grown."""
    array: NDArray[np.int32] | None = request.block_array
    if array is None or len(array) != len(request.block_table):
        import numpy as np

        array = request.block_array = np.array(request.block_table, np.int32)
    return array
