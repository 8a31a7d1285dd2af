"""Device memory: buffers, their accounting, and a pool for what lives inside a region."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.backend import InvalidArgument, OutOfMemory
from runtime_opencl.errors import translated


class DeviceBuffer:
    """Memory on the device; `memory` is the OpenCL buffer."""

    def __init__(self, allocator: Allocator, memory: Any, nbytes: int) -> None:
        self._allocator: Allocator | None = allocator
        self._memory = memory
        self._nbytes = nbytes

    @property
    def nbytes(self) -> int:
        """Bytes that it occupies."""
        return self._nbytes

    @property
    def memory(self) -> Any:
        """The OpenCL buffer; raises InvalidArgument after `close`."""
        if self._memory is None:
            raise InvalidArgument(f"a closed buffer of {self._nbytes} bytes was used")
        return self._memory

    def close(self) -> None:
        """Give the memory back once the work that uses it is done; closing twice is harmless."""
        if self._allocator is not None:
            self._allocator.forget(self)
            self._memory.release()  # OpenCL keeps it for as long as submitted commands need it
            self._allocator = self._memory = None


class Allocator:
    """All buffers of one device, held to a limit."""

    def __init__(self, context: Any, device: Any, limit_bytes: int | None = None) -> None:
        self._context = context
        self._total = int(device.global_mem_size) if limit_bytes is None else limit_bytes
        self._largest = int(device.max_mem_alloc_size)
        self._used = 0
        self._live: weakref.WeakSet[DeviceBuffer] = weakref.WeakSet()

    @property
    def free_and_total(self) -> tuple[int, int]:
        """Bytes that are left, and in all. OpenCL does not tell what other programs use."""
        return max(0, self._total - self._used), self._total

    def allocate(self, nbytes: int, what: str) -> DeviceBuffer:
        """A buffer with undefined content; raises OutOfMemory."""
        import pyopencl as cl

        free, _ = self.free_and_total
        limit, reason = (free, "are free") if free < self._largest else (self._largest, "fit in one buffer")
        if nbytes > limit:
            raise OutOfMemory(
                f"{what} takes {nbytes} bytes, {limit} {reason} on the OpenCL device",
                remedy="ask for a shorter context or fewer sequences",
                requested_bytes=nbytes,
                available_bytes=limit,
            )
        with translated(f"allocating {what}", nbytes):
            memory = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, size=max(4, nbytes))
        buffer = DeviceBuffer(self, memory, nbytes)
        self._used += nbytes
        self._live.add(buffer)
        return buffer

    def forget(self, buffer: DeviceBuffer) -> None:
        """Called by a buffer that closes."""
        self._live.discard(buffer)
        self._used -= buffer.nbytes

    def close(self) -> None:
        """Close every buffer that is left."""
        for buffer in list(self._live):
            buffer.close()


@dataclass(frozen=True)
class Lifetime:
    """A value, its largest size, and the first and last node (inclusive) that need it."""

    name: str
    nbytes: int
    first: int
    last: int


def assign_slots(lifetimes: Sequence[Lifetime]) -> tuple[dict[str, int], list[int]]:
    """Value -> slot, and bytes of every slot: values that live at different times share one.

    In order of birth, a value takes the free slot that wastes least, or that grows least.
    """
    slots: dict[str, int] = {}
    sizes: list[int] = []
    busy_until: list[int] = []
    for life in sorted(lifetimes, key=lambda v: (v.first, -v.nbytes, v.name)):
        free = [i for i, last in enumerate(busy_until) if last < life.first]
        if free:
            slot = min(free, key=lambda i: (max(0, life.nbytes - sizes[i]), sizes[i] - life.nbytes))
            sizes[slot] = max(sizes[slot], life.nbytes)
        else:
            slot = len(sizes)
            sizes.append(life.nbytes)
            busy_until.append(0)
        busy_until[slot] = life.last
        slots[life.name] = slot
    return slots, sizes


def own(buffer: Any) -> DeviceBuffer:
    """`buffer` if it is one of ours; raises InvalidArgument otherwise."""
    if not isinstance(buffer, DeviceBuffer):
        raise InvalidArgument(f"a {type(buffer).__name__} was given to an OpenCL device, which did not allocate it")
    return buffer
