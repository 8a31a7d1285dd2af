"""A tensor's description: format and shape, with symbolic dimensions and their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.dtypes.format import Format
from runtime.errors import InvalidArgument

Dim = int | str
"""A fixed size, or the name of a symbolic dimension such as "T" (tokens of a step)."""


@dataclass(frozen=True)
class Span:
    """All values that a symbolic dimension may take: lo, lo + step, ..., hi (inclusive)."""

    lo: int
    hi: int
    step: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.lo <= self.hi or self.step < 1:
            raise InvalidArgument(f"span [{self.lo}, {self.hi}] step {self.step} is empty or negative")

    def __str__(self) -> str:
        if self.lo == self.hi:
            return str(self.lo)
        return f"{self.lo}..{self.hi}" + (f" step {self.step}" if self.step > 1 else "")


@dataclass(frozen=True)
class TensorSpec:
    """Format and shape of a tensor; the shape is row-major, outermost dimension first.

    `layout` is "plain" for contiguous row-major data. "kv" marks a KV cache, whose physical layout its backend
    chooses; its logical shape is [2 (k, v), num_blocks, block_size, num_kv_heads, head_dim].
    """

    format: Format
    shape: tuple[Dim, ...]
    layout: str = "plain"

    def resolve(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with every symbolic dimension replaced by its value in `dims`."""
        return tuple(d if isinstance(d, int) else dims[d] for d in self.shape)

    def nbytes(self, dims: Mapping[str, int] | None = None) -> int:
        """Bytes of the tensor, given the values of its symbolic dimensions."""
        return self.format.nbytes(self.resolve(dims or {}))

    def __str__(self) -> str:
        return f"{self.format.name}[{', '.join(str(d) for d in self.shape)}]"
