"""The pool of KV cache blocks: numbers only; the memory belongs to the devices."""

from __future__ import annotations

from runtime.errors import OutOfMemory


class BlockPool:
    """Hands out block ids 0 .. num_blocks - 1, lowest first, and takes them back."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens occupy."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks; raises OutOfMemory and takes none when there are not enough."""
        if count > len(self._free):
            raise OutOfMemory(
                f"{count} KV blocks of {self.block_size} tokens were asked for, {len(self._free)} of "
                f"{self.num_blocks} are free"
            )
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        taken.reverse()
        return taken

    def free(self, block_ids: list[int]) -> None:
        """Take blocks back and empty the list."""
        self._free.extend(reversed(block_ids))
        block_ids.clear()
