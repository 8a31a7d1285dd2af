"""Weights of the reference device: stored bytes in place, decoded when used, kept decoded within a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.backend.host import VIEWED
from runtime.dtypes import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK_ELEMENTS = 1 << 18
"""Elements decoded or widened at a time: 2 MiB as float64, so that a chunk is still in the cache when it is used."""


class DecodeBudget:
    """Bytes that decoded weights may take.

    First come, first kept: a step touches every weight once and in the same order, so an eviction by age would drop
    each just before its next use.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0

    def take(self, nbytes: int) -> bool:
        """Reserve `nbytes` if they are left."""
        if self.used_bytes + nbytes > self.max_bytes:
            return False
        self.used_bytes += nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        """Return what was taken."""
        self.used_bytes -= nbytes


class HostWeight:
    """A weight [..., K] as rows of K elements: its stored bytes, and units that were decoded and kept.

    A unit is what is used together: the matrix [N, K], or one expert of [E, N, K].
    """

    def __init__(self, spec: TensorSpec, raw: NDArray[np.uint8], budget: DecodeBudget) -> None:
        shape = spec.resolve({})
        self.spec = spec
        self.shape = shape
        self.row_elements = shape[-1] if shape else 1
        self.num_rows = _product(shape[:-1])
        self._unit_rows = shape[-2] if len(shape) >= 2 else 1
        self._raw = raw.reshape(self.num_rows, -1)
        self._budget = budget
        self._kept: dict[int, NDArray[Any]] = {}
        self._kept_bytes = 0
        self._has_plain_rows = spec.format.name in ("f32", "f64")

    @property
    def nbytes(self) -> int:
        """Bytes as stored, plus bytes kept decoded."""
        return self._raw.nbytes + self._kept_bytes

    def close(self) -> None:
        """Drop what was decoded; the stored bytes belong to whoever mapped them."""
        self._kept.clear()
        self._budget.give_back(self._kept_bytes)
        self._kept_bytes = 0

    def rows(self, start: int, stop: int, *, keep: bool = True) -> NDArray[Any]:
        """Rows [start, stop) decoded exactly: [stop - start, K] in float32 (f64 and integers as they are).

        The rows must lie in one unit. `keep` allows to decode and keep that whole unit, when the budget has room.
        """
        if self._has_plain_rows:
            return self._raw[start:stop].view(VIEWED[self.spec.format.name])
        unit = start // self._unit_rows
        first = unit * self._unit_rows
        kept = self._kept.get(unit)
        if kept is None and keep:
            kept = self._decode_unit(unit, first)
        if kept is not None:
            return kept[start - first : stop - first]
        return self._decode(start, stop)

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Chosen rows [len(indices), K]; nothing else is decoded."""
        if self._has_plain_rows:
            return self._raw[indices].view(VIEWED[self.spec.format.name])
        kept = self._kept.get(0)
        if kept is not None and self._unit_rows == self.num_rows:
            return kept[indices]
        return self.spec.format.decode(self._raw[indices], (len(indices), self.row_elements))

    def array(self) -> NDArray[Any]:
        """The whole tensor, decoded, in its shape."""
        import numpy as np

        step = self._unit_rows
        parts = [self.rows(r, r + step) for r in range(0, self.num_rows, step)]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole.reshape(self.shape)

    def chunk_rows(self, num_tokens: int) -> int:
        """How many rows to use at a time for that many tokens: more tokens pay for a larger chunk."""
        return max(1, CHUNK_ELEMENTS // self.row_elements, min(num_tokens, 8 * CHUNK_ELEMENTS // self.row_elements))

    def _decode(self, start: int, stop: int) -> NDArray[Any]:
        return self.spec.format.decode(self._raw[start:stop], (stop - start, self.row_elements))

    def _decode_unit(self, unit: int, first: int) -> NDArray[Any] | None:
        import numpy as np

        rows = min(self._unit_rows, self.num_rows - first)
        nbytes = rows * self.row_elements * 4
        if not self._budget.take(nbytes):
            return None
        self._kept_bytes += nbytes
        step = max(1, CHUNK_ELEMENTS // self.row_elements)
        sample = self._decode(first, first + min(step, rows))
        decoded = np.empty((rows, self.row_elements), sample.dtype)
        decoded[: len(sample)] = sample
        for start in range(len(sample), rows, step):
            stop = min(start + step, rows)
            decoded[start:stop] = self._decode(first + start, first + stop)
        self._kept[unit] = decoded
        return decoded


def _product(sizes: tuple[int, ...]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
