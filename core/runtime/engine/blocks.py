"""The pool of KV cache blocks: numbers only; the memory belongs to the devices."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from runtime.errors import OutOfMemory

_HASH_BYTES = 32


def root_hash(salt: str, adapter: str = "", media: Sequence[str] = ()) -> bytes:
    """Where the chain of a sequence's block hashes begins: blocks are shared only among sequences of one root."""
    return blake2b(repr((salt, adapter, tuple(media))).encode(), digest_size=_HASH_BYTES).digest()


def chained_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of a full block: its tokens and everything before them."""
    h = blake2b(parent, digest_size=_HASH_BYTES)
    h.update(array("i", token_ids).tobytes())
    return h.digest()


class BlockPool:
    """Counts references to block ids 0 .. num_blocks - 1 and remembers what full blocks hold.

    Every block is in one place::

        empty ──allocate──> held (references > 0) ──free──> idle, if it was registered, else empty
          ^                   ^                               │ │
          └───────────────────│──────────evict (LRU)──────────┘ │
                              └────────────share────────────────┘

    Idle blocks are free: they are evicted, least recently used first, when there are no empty ones.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, idle ones included."""
        return len(self._empty) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Of the free blocks, those whose content can be found again."""
        return len(self._idle)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens occupy."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks, empty ones first; raises OutOfMemory and takes none when there are not enough."""
        if count > self.num_free:
            raise OutOfMemory(
                f"{count} KV blocks of {self.block_size} tokens were asked for, {self.num_free} of "
                f"{self.num_blocks} are free"
            )
        taken = self._empty[max(len(self._empty) - count, 0) :]
        del self._empty[max(len(self._empty) - count, 0) :]
        taken.reverse()
        while len(taken) < count:
            block_id, _ = self._idle.popitem(last=False)
            self._forget(block_id)
            taken.append(block_id)
        for block_id in taken:
            self._references[block_id] = 1
        return taken

    def free(self, block_ids: list[int]) -> None:
        """Drop one reference to each and empty the list. The last blocks of a sequence become the first to evict."""
        for block_id in reversed(block_ids):
            self._references[block_id] -= 1
            if self._references[block_id] == 0:
                if self._hash_of[block_id] is None:
                    self._empty.append(block_id)
                else:
                    self._idle[block_id] = None
            elif self._references[block_id] < 0:
                raise RuntimeError(f"KV block {block_id} was freed more often than it was taken")
        block_ids.clear()

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """Blocks that hold the longest known beginning of the chain `hashes`; they must be shared to be used."""
        found = []
        for name in hashes:
            block_id = self._by_hash.get(name)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def num_idle(self, block_ids: Sequence[int]) -> int:
        """How many of them are idle: sharing those takes as many free blocks."""
        return sum(self._references[block_id] == 0 for block_id in block_ids)

    def share(self, block_ids: Sequence[int]) -> None:
        """Add a reference to blocks that are held or idle."""
        for block_id in block_ids:
            if self._references[block_id] == 0:
                del self._idle[block_id]
            self._references[block_id] += 1

    def register(self, block_id: int, name: bytes) -> None:
        """Say what a held, full block contains. Of two blocks with one content, the first stays findable."""
        if name not in self._by_hash and self._hash_of[block_id] is None:
            self._by_hash[name] = block_id
            self._hash_of[block_id] = name

    def reset(self) -> None:
        """Forget all contents; blocks that are held stay held."""
        self._empty.extend(self._idle)
        self._idle.clear()
        self._by_hash.clear()
        self._hash_of = [None] * self.num_blocks

    def check(self) -> None:
        """Raise RuntimeError where the books do not agree: for tests and for hunting bugs."""
        held = [b for b, count in enumerate(self._references) if count > 0]
        places = sorted([*self._empty, *self._idle, *held])
        rules = {
            "every block is empty, idle or held, once": places == list(range(self.num_blocks)),
            "no negative references": min(self._references, default=0) >= 0,
            "idle blocks are registered": all(self._hash_of[b] is not None for b in self._idle),
            "empty blocks are not": all(self._hash_of[b] is None for b in self._empty),
            "names and blocks agree": all(self._hash_of[b] == name for name, b in self._by_hash.items())
            and sum(name is not None for name in self._hash_of) == len(self._by_hash),
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise RuntimeError(f"the block pool broke a rule: {'; '.join(broken)}")

    def references(self, block_id: int) -> int:
        """How many sequences hold a block."""
        return self._references[block_id]

    def _forget(self, block_id: int) -> None:
        name = self._hash_of[block_id]
        assert name is not None
        del self._by_hash[name]
        self._hash_of[block_id] = None
