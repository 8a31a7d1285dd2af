"""An engine around a model that computes nothing but remembers, slot by slot, what a real one would have written."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.engine.sampler import Sampled
from runtime.engine.scheduler import Schedule, Scheduled, Scheduler
from runtime.errors import ExecutionFailed, NumericFault
from runtime.tokenizer import ByteTokenizer

VOCAB_SIZE = 256


def token_after(context: int, seed: int) -> int:
    """What the model says next: a function of everything before, and of the seed."""
    return hash((context, seed)) % 200 + 20


class RememberingRunner:
    """Each slot holds a number that stands for the token written there and all before it.

    A part finds its earlier slots as it must, or the step is wrong: an AssertionError. With `failing`, a step fails
    now and then and leaves nonsense where it was to write; requests whose prompt begins with token 7 always fail.
    """

    def __init__(self, block_size: int, failing: random.Random | None = None, *, can_copy_blocks: bool = True) -> None:
        self.block_size = block_size
        self.can_copy_blocks = can_copy_blocks
        self.slots: dict[int, int] = {}
        self.num_tokens = 0
        self.steps: list[tuple[int, ...]] = []
        self._failing = failing

    def move_blocks(self, schedule: Schedule) -> None:
        for moved in schedule.swap_out:
            moved.request.swapped = [self._block(b) for b in moved.block_ids]
        for moved in schedule.swap_in:
            for block_id, content in zip(moved.block_ids, moved.request.swapped, strict=True):
                self._write_block(block_id, content)
            moved.request.swapped = None
        for source, target in schedule.block_copies:
            self._write_block(target, self._block(source))

    def run(self, parts: Sequence[Scheduled]) -> np.ndarray:
        """One row per part that reaches the end: the number of its context."""
        fails = self._failing is not None and self._failing.random() < 0.02
        rows, written = [], set()
        for part in parts:
            fails = fails or part.request.prompt_token_ids[0] == 7
            context = 0
            table = part.request.block_table
            stop = part.start + part.num_scheduled_tokens
            for position, token_id in enumerate(part.request.token_ids_at(0, stop)):
                context = hash((context, token_id))
                slot = table[position // self.block_size] * self.block_size + position % self.block_size
                if position < part.start:
                    assert self.slots.get(slot) == context, f"{part.request.request_id} at {position} of {part.start}"
                else:
                    assert slot not in written, f"slot {slot} is written twice"
                    written.add(slot)
                    self.slots[slot] = -1 if fails else context
            if part.reaches_end:
                rows.append([context])
        self.num_tokens += sum(p.num_scheduled_tokens for p in parts)
        self.steps.append(tuple(p.num_scheduled_tokens for p in parts))
        if fails:
            raise ExecutionFailed("the step failed")
        return np.array(rows, np.int64).reshape(-1, 1)

    def close(self) -> None: ...

    def _block(self, block_id: int) -> list[int | None]:
        start = block_id * self.block_size
        return [self.slots.get(slot) for slot in range(start, start + self.block_size)]

    def _write_block(self, block_id: int, content: Sequence[int | None]) -> None:
        for i, value in enumerate(content):
            self.slots[block_id * self.block_size + i] = -1 if value is None else value


class NullSampler:
    """Chooses by `token_after`; token 11 at the beginning of a prompt makes its own row fail."""

    def sample(self, logits: np.ndarray, requests: Sequence[Request]) -> list[Sampled]:
        sampled = []
        for (context,), request in zip(logits.tolist(), requests, strict=True):
            if request.prompt_token_ids[0] == 11:
                sampled.append(Sampled(-1, error=NumericFault("the row holds NaN")))
            else:
                sampled.append(Sampled(token_after(context, request.seed)))
        return sampled

    def close(self) -> None: ...


def expected_tokens(prompt: Sequence[int], seed: int, count: int) -> list[int]:
    """What a request must get, whatever else runs."""
    context = 0
    for token_id in prompt:
        context = hash((context, token_id))
    output = []
    for _ in range(count):
        output.append(token_after(context, seed))
        context = hash((context, output[-1]))
    return output


def null_engine(
    scheduler: Scheduler, *, failing: random.Random | None = None, max_model_len: int = 64, **runner: Any
) -> Engine:
    """An engine without devices."""
    return Engine(
        runner=RememberingRunner(scheduler.pool.block_size, failing, **runner),  # type: ignore[arg-type]
        sampler=NullSampler(),  # type: ignore[arg-type]
        scheduler=scheduler,
        tokenizer=ByteTokenizer(),
        vocab_size=VOCAB_SIZE,
        max_model_len=max_model_len,
    )
