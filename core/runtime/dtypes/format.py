"""What a stored number format is: its name, its block geometry and its exact decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from runtime.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["float", "int", "uint", "bool", "block"]
Decode = Callable[["NDArray[np.uint8]"], "NDArray[Any]"]


@dataclass(frozen=True)
class Format:
    """One way to store numbers.

    A plain format has `group_size` 1. A block format stores `group_size` consecutive elements of the innermost
    dimension in `block_bytes` bytes, scales included.

    `decode_blocks` takes uint8 [num_blocks, block_bytes] and returns [num_blocks, group_size] in float32
    (float64 for f64, the integer type for integers). It is the only definition of what the bytes mean.
    """

    name: str
    kind: Kind
    group_size: int
    block_bytes: int
    decode_blocks: Decode
    ggml_type: int | None = None

    @property
    def bits(self) -> float:
        """Bits per element, scales included."""
        return 8 * self.block_bytes / self.group_size

    @property
    def is_quantized(self) -> bool:
        """Whether elements share scales in blocks."""
        return self.kind == "block"

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes that a tensor of `shape` (outermost dimension first) takes; the innermost must be whole blocks."""
        if not shape:
            return self.block_bytes
        if shape[-1] % self.group_size:
            raise InvalidArgument(
                f"a {self.name} tensor of shape {tuple(shape)} is impossible: "
                f"{self.name} stores {self.group_size} elements per block, {shape[-1]} is not a multiple of it"
            )
        return prod(shape) // self.group_size * self.block_bytes

    def decode(self, data: Any, shape: Sequence[int]) -> NDArray[Any]:
        """Decode `data` (any buffer of exactly `nbytes(shape)` bytes, little-endian) to an array of `shape`."""
        import numpy as np

        raw = np.frombuffer(data, dtype=np.uint8)
        expected = self.nbytes(shape)
        if raw.size != expected:
            raise InvalidArgument(
                f"a {self.name} tensor of shape {tuple(shape)} takes {expected} bytes, {raw.size} were given"
            )
        return self.decode_blocks(raw.reshape(-1, self.block_bytes)).reshape(tuple(shape))


class FormatRegistry:
    """Formats by name and by GGML type id; backends may add their own as `vendor::name`."""

    def __init__(self) -> None:
        self._by_name: dict[str, Format] = {}
        self._by_ggml_type: dict[int, Format] = {}

    def add(self, fmt: Format) -> None:
        """Register `fmt`; a taken name or GGML type id is refused."""
        if fmt.name in self._by_name:
            raise InvalidArgument(f"format '{fmt.name}' is already registered")
        if fmt.ggml_type is not None:
            if fmt.ggml_type in self._by_ggml_type:
                raise InvalidArgument(
                    f"GGML type {fmt.ggml_type} is already '{self._by_ggml_type[fmt.ggml_type].name}'"
                )
            self._by_ggml_type[fmt.ggml_type] = fmt
        self._by_name[fmt.name] = fmt

    def __getitem__(self, name: str) -> Format:
        try:
            return self._by_name[name]
        except KeyError:
            raise Unsupported(
                f"number format '{name}' is unknown", remedy=f"known formats: {', '.join(sorted(self._by_name))}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[Format]:
        return iter(self._by_name.values())

    def from_ggml_type(self, ggml_type: int) -> Format | None:
        """The format with this GGML type id, or None."""
        return self._by_ggml_type.get(ggml_type)
