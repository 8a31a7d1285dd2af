"""Device memory: buffers of bytes, weights in planes, their accounting, and slots for what lives inside a region."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from runtime.backend import InvalidArgument, OutOfMemory, TensorSpec, Value
from runtime_torch.errors import translated

DTYPES: Mapping[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8_e4m3": torch.float8_e4m3fn,
    "f8_e5m2": torch.float8_e5m2,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "bool": torch.bool,
}
"""torch's type of a plain format."""
MAX_VIEWS = 8
"""Tensors over one buffer that are kept: every layer of a step asks for the same ones."""


class TorchBuffer:
    """Bytes on the device. A weight in a block format has `planes` (see `planes.PlaneLayout`) instead of `raw`.

    Where `keeps` is set, small uploads wait on the host until someone reads them: captured steps take them from there.
    """

    def __init__(
        self,
        owner: Allocator | None,
        nbytes: int,
        raw: torch.Tensor | None,
        planes: dict[str, torch.Tensor] | None = None,
        spec: TensorSpec | None = None,
    ) -> None:
        self._owner = owner
        self._nbytes = nbytes
        self._raw = raw
        self.planes = planes
        self.spec = spec
        self.keeps = False
        self._kept: bytes | None = None
        self._views: dict[object, torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that it occupies."""
        return self._nbytes

    @property
    def raw(self) -> torch.Tensor:
        """uint8 [nbytes]; raises InvalidArgument after `close`, and for a weight that was repacked."""
        if self._raw is None:
            what = "a weight in planes" if self.planes else "a closed buffer"
            raise InvalidArgument(f"{what} of {self._nbytes} bytes was used as plain memory")
        self.settle()
        return self._raw

    @property
    def address(self) -> int:
        """Of its first byte, whatever waits on the host."""
        return self._raw.data_ptr() if self._raw is not None else 0

    def keep(self, data: memoryview) -> None:
        """New content, which stays on the host for now."""
        if self._kept is not None and len(self._kept) > data.nbytes:
            self.settle()
        self._kept = bytes(data)

    def kept(self, nbytes: int) -> bytes | None:
        """The first `nbytes` or more of the content where they wait on the host."""
        return self._kept if self._kept is not None and len(self._kept) >= nbytes else None

    def settle(self) -> None:
        """Bring what waits on the host to the device."""
        kept, self._kept = self._kept, None
        if kept and self._raw is not None:
            with translated(f"uploading {len(kept)} bytes"):
                host = torch.frombuffer(bytearray(kept), dtype=torch.uint8)
                # from pinned memory, or the copy would wait for everything that was submitted before
                host = host if self._raw.device.type == "cpu" else host.pin_memory()
                self._raw[: len(kept)].copy_(host, non_blocking=True)

    def part(self, start: int, nbytes: int) -> TorchBuffer:
        """Some of its bytes; they live as long as it does."""
        return TorchBuffer(None, nbytes, self.raw[start : start + nbytes])

    def view(self, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        """The first bytes as a tensor; raises InvalidArgument where they do not suffice."""
        size = prod(shape) * dtype.itemsize
        if size > self._nbytes:
            raise InvalidArgument(
                f"a tensor {list(shape)} of {dtype} takes {size} bytes, the buffer has {self._nbytes}"
            )
        raw, key = self.raw, (dtype, *shape)
        if key not in self._views:
            if len(self._views) >= MAX_VIEWS:
                self._views.clear()
            self._views[key] = raw[:size].view(dtype).view(tuple(shape))
        return self._views[key]

    def close(self) -> None:
        """Give the memory back; work that was submitted before may still use it. Closing twice is harmless."""
        if self._owner is not None:
            self._owner.forget(self)
            self._owner = self._raw = self.planes = self._kept = None
            self._views.clear()


class Allocator:
    """All buffers of one device, held to a limit."""

    def __init__(self, device: torch.device, total: int) -> None:
        self._device = device
        self._total = total
        self._used = 0
        self._live: weakref.WeakSet[TorchBuffer] = weakref.WeakSet()

    @property
    def free_and_total(self) -> tuple[int, int]:
        """Bytes that are left under the limit, and in all."""
        return max(0, self._total - self._used), self._total

    def allocate(self, nbytes: int, what: str) -> TorchBuffer:
        """A buffer with undefined content; raises OutOfMemory."""
        self._reserve(nbytes, what)
        with translated(what, nbytes):
            # whole words, so that a kernel may read the last element of any type
            raw = torch.empty(-(-max(nbytes, 1) // 16) * 16, dtype=torch.uint8, device=self._device)
        return self._keep(TorchBuffer(self, nbytes, raw[: max(nbytes, 0)]))

    def adopt(self, planes: dict[str, torch.Tensor], spec: TensorSpec, what: str) -> TorchBuffer:
        """A weight in planes that were made on the device."""
        nbytes = sum(plane.numel() * plane.element_size() for plane in planes.values())
        self._reserve(nbytes, what)
        return self._keep(TorchBuffer(self, nbytes, None, planes, spec))

    def forget(self, buffer: TorchBuffer) -> None:
        """Called by a buffer that closes."""
        self._live.discard(buffer)
        self._used -= buffer.nbytes

    def close(self) -> None:
        """Close every buffer that is left."""
        for buffer in list(self._live):
            buffer.close()

    def _reserve(self, nbytes: int, what: str) -> None:
        free, _ = self.free_and_total
        if nbytes > free:
            raise OutOfMemory(
                f"{what} takes {nbytes} bytes, {free} are free on {self._device}",
                remedy="ask for a shorter context or fewer sequences",
                requested_bytes=nbytes,
                available_bytes=free,
            )

    def _keep(self, buffer: TorchBuffer) -> TorchBuffer:
        self._used += buffer.nbytes
        self._live.add(buffer)
        return buffer


@dataclass(frozen=True)
class Lifetime:
    """A value, its largest size, and the first and last node (inclusive) that need it."""

    value: Value
    nbytes: int
    first: int
    last: int


def assign_slots(lifetimes: Sequence[Lifetime]) -> tuple[dict[Value, int], list[int]]:
    """Value -> slot, and bytes of every slot: values that live at different times share one.

    In order of birth, a value takes the free slot that wastes least, or that grows least.
    """
    slots: dict[Value, int] = {}
    sizes: list[int] = []
    busy_until: list[int] = []
    for life in sorted(lifetimes, key=lambda v: (v.first, -v.nbytes, v.value.name)):
        free = [i for i, last in enumerate(busy_until) if last < life.first]
        if free:
            slot = min(free, key=lambda i: (max(0, life.nbytes - sizes[i]), sizes[i] - life.nbytes))
            sizes[slot] = max(sizes[slot], life.nbytes)
        else:
            slot = len(sizes)
            sizes.append(life.nbytes)
            busy_until.append(0)
        busy_until[slot] = life.last
        slots[life.value] = slot
    return slots, sizes


def own(buffer: Any) -> TorchBuffer:
    """`buffer` if it is one of ours; raises InvalidArgument otherwise."""
    if not isinstance(buffer, TorchBuffer):
        raise InvalidArgument(f"a {type(buffer).__name__} was given to a torch device, which did not allocate it")
    return buffer
