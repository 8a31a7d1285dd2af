"""Ragged steps: sequences with their blocks, as attention, the cache and whole layers take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime_conformance.case import Tensor

SCENARIOS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "decode": ((1,), (37,)),
    "mixed": ((1, 9, 1, 4), (30, 9, 16, 21)),
    "prefill": ((23,), (23,)),
    "decode_batch": ((1, 1, 1), (1, 17, 40)),
    "chunk": ((7,), (29,)),
    "borders": ((1, 1, 2), (16, 32, 17)),
    "pause": ((3, 0, 2), (20, 12, 2)),
    "long": ((1, 2), (300, 129)),
}
"""Name -> (queries of each sequence in this step, keys of each sequence, those of this step included)."""
FREE_BLOCKS = 3
"""Blocks that belong to nobody; they hold garbage."""


@dataclass(frozen=True)
class Batch:
    """The integers of one step."""

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    block_size: int
    block_table: tuple[tuple[int, ...], ...]
    num_blocks: int

    @property
    def num_tokens(self) -> int:
        """Rows of the step."""
        return sum(self.query_lens)

    @property
    def query_start_loc(self) -> tuple[int, ...]:
        """Borders of the sequences' rows."""
        borders = [0]
        for n in self.query_lens:
            borders.append(borders[-1] + n)
        return tuple(borders)

    @property
    def positions(self) -> tuple[int, ...]:
        """Position of each row in its sequence."""
        return tuple(
            position for n, length in zip(self.query_lens, self.seq_lens) for position in range(length - n, length)
        )

    @property
    def slot_mapping(self) -> tuple[int, ...]:
        """Slot of each row."""
        slots = []
        for s, (n, length) in enumerate(zip(self.query_lens, self.seq_lens)):
            for position in range(length - n, length):
                block = self.block_table[s][position // self.block_size]
                slots.append(block * self.block_size + position % self.block_size)
        return tuple(slots)

    def tensors(self) -> Mapping[str, Tensor]:
        """Inputs of attention that are integers."""
        flat = tuple(b for row in self.block_table for b in row)
        return {
            "block_table": Tensor("i32", (len(self.block_table), len(self.block_table[0])), data=("values", *flat)),
            "query_start_loc": Tensor("i32", (len(self.query_start_loc),), data=("values", *self.query_start_loc)),
            "seq_lens": Tensor("i32", (len(self.seq_lens),), data=("values", *self.seq_lens)),
        }


def make_batch(scenario: str, block_size: int) -> Batch:
    """The step called `scenario`: blocks are scattered, and entries past a sequence's end are 0."""
    query_lens, seq_lens = SCENARIOS[scenario]
    needed = [-(-length // block_size) for length in seq_lens]
    num_blocks = sum(needed) + FREE_BLOCKS
    stride = next(s for s in (7, 5, 3, 1) if num_blocks % s)
    order = [(i * stride + 2) % num_blocks for i in range(num_blocks)]
    table, start = [], 0
    for count in needed:
        row = order[start : start + count]
        table.append(tuple(row + [0] * (max(needed) - count)))
        start += count
    return Batch(query_lens, seq_lens, block_size, tuple(table), num_blocks)
