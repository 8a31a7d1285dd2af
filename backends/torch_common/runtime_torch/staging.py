"""Step inputs on their way into captured steps: one transfer and one kernel, whatever their number and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch

from runtime.backend import Region, Value
from runtime_torch.accelerator import Accelerator
from runtime_torch.buckets import COLUMNS, largest_bucket, ports_of, staged_inputs
from runtime_torch.calls import NO_FAULT, Call, cdiv, clamp, launch
from runtime_torch.kernels import elementwise
from runtime_torch.memory import Allocator, TorchBuffer
from runtime_torch.settings import Settings, next_power

WORD = 4
"""Bytes of an element: inputs of padded steps are int32 or float32."""
ENTRY = 8
"""Words that the packed form has for an input, see `kernels.elementwise.unpack`."""
ALIGN = 64
"""Words at which an input begins: addresses divide by 16 whatever comes before."""
NUM_SLOTS = 2
"""Pinned memories in turn: the next step is written while the last one may still be read from."""
MAX_PROGRAMS = 64


class Inbox:
    """Memory of a region's step inputs at the sizes of the largest bucket; `buffers` are what captured steps read.

    What was uploaded since the last step waits on the host (see `TorchBuffer.keep`) and goes out packed, with the
    sizes of this step in front; what is on the device already is copied there.
    """

    def __init__(self, region: Region, settings: Settings, accelerator: Accelerator, allocator: Allocator) -> None:
        self._values = staged_inputs(region)
        self._ports = [ports_of(region, value) for value in self._values]
        self._accelerator = accelerator
        self._specs = [value.spec for value in self._values]
        largest = largest_bucket(region, settings)
        sizes = [_words(spec.resolve(largest)) for spec in self._specs]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._header = _aligned(ENTRY * len(sizes))
        self._staged = allocator.allocate(WORD * sum(sizes), f"step inputs of {region.name}")
        self._packed = allocator.allocate(WORD * (self._header + sum(sizes)), f"packed step inputs of {region.name}")
        self.owned = [self._staged, self._packed]
        self.buffers = {
            value: self._staged.part(WORD * start, WORD * size)
            for value, start, size in zip(self._values, self._starts, sizes)
        }
        self._words = self._packed.view(torch.int32, (self._header + sum(sizes),))
        self._pinned: list[torch.Tensor] = []
        self._arrays: list[Any] = []
        self._events: list[Any] = [None] * NUM_SLOTS
        self._turn = 0
        self._entries: dict[int, Any] = {}

    def unpack_call(self, bucket: Mapping[str, int], fault: torch.Tensor) -> Call:
        """The kernel that spreads the packed inputs in the shapes of the bucket, and clears the fault record.

        Slots pad with -1 (nothing is written), as do ids of tokens in histories and biases; borders repeat the last
        one (no queries), all else is zero. Of a wide table only the columns of this step are written: lengths keep
        readers away from the others.
        """
        if not self._values:
            return lambda: fault.fill_(NO_FAULT)
        largest = max(prod(spec.resolve(bucket)) for spec in self._specs)
        block = min(1024, next_power(largest))
        grid = (clamp(cdiv(largest, block), 1, MAX_PROGRAMS), len(self._values))
        staged = self._staged.view(torch.int32, (self._staged.nbytes // WORD,))
        return launch(elementwise.unpack, grid, self._words, staged, fault, BLOCK=block)

    def entries(self, bucket: Mapping[str, int]) -> Any:
        """int32 [inputs, ENTRY] in front of every step of the bucket, but for the sizes of the step."""
        made = np.zeros((len(self._values), ENTRY), np.int32)
        for i, spec in enumerate(self._specs):
            shape = spec.resolve(bucket)
            are_ids = self._ports[i] & {"token_ids", "bias_ids"} and spec.shape[-1] in COLUMNS
            fill = -1 if are_ids or "slot_mapping" in self._ports[i] else 0
            made[i, 3:] = self._starts[i], shape[0], prod(shape[1:]), fill, "query_start_loc" in self._ports[i]
        return made

    def send(self, entries: Any, bound: Mapping[Value, TorchBuffer], dims: Mapping[str, int]) -> None:
        """Put the step inputs in `bound` on their way, in the sizes `dims`."""
        shapes = [spec.resolve(dims) for spec in self._specs]
        sizes = [prod(shape) for shape in shapes]
        total = self._header + sum(_aligned(size) for size in sizes)
        words, array = self._slot(total)
        on_device: list[tuple[int, int, TorchBuffer]] = []
        at = self._header
        for i, value in enumerate(self._values):
            shape, size, buffer = shapes[i], sizes[i], bound[value]
            entries[i, :3] = at, shape[0], size // max(1, shape[0])
            kept = buffer.kept(WORD * size)
            if kept is None:
                on_device.append((at, size, buffer))
            else:
                array[at : at + size] = np.frombuffer(kept, np.int32, size)
            at += _aligned(size)
        array[: entries.size] = entries.reshape(-1)
        self._words[:total].copy_(words[:total], non_blocking=True)
        for at, size, buffer in on_device:
            self._words[at : at + size].copy_(buffer.view(torch.int32, (size,)))
            buffer.keeps = True

    def sent(self, event: Any) -> None:
        """The step that reads what was sent is submitted; `event` comes behind it."""
        self._events[self._turn] = event
        self._turn = (self._turn + 1) % NUM_SLOTS

    def _slot(self, size: int) -> tuple[torch.Tensor, Any]:
        """Pinned words that no transfer reads any more, and the same as an array."""
        if not self._pinned or size > self._pinned[0].numel():
            # what was sent from the old ones: torch frees pinned memory when its transfers are done
            self._pinned = [self._accelerator.pinned(next_power(size), torch.int32) for _ in range(NUM_SLOTS)]
            self._arrays = [words.numpy() for words in self._pinned]
            self._events = [None] * NUM_SLOTS
        event = self._events[self._turn]
        if event is not None:
            event.synchronize()
        return self._pinned[self._turn], self._arrays[self._turn]


def _aligned(words: int) -> int:
    return -(-words // ALIGN) * ALIGN


def _words(shape: tuple[int, ...]) -> int:
    return _aligned(max(1, prod(shape)))
