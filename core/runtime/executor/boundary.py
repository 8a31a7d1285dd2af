"""Buffers for what enters and leaves regions: allocated once, shared by values that do not live at the same time."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.backend import Buffer, Device
from runtime.dtypes import TensorSpec
from runtime.executor.exchange import resolved
from runtime.executor.plan import Plan
from runtime.graph import Value

Key = tuple[str, str]


class BoundaryBuffers:
    """A buffer per value and device, for the inputs and outputs of all regions of a plan, at the sizes `sizes`.

    Values of equal spec share a buffer when the first is dead before the second is made.
    """

    def __init__(self, plan: Plan, devices: Mapping[str, Device], sizes: Mapping[str, int]) -> None:
        self._buffers: dict[Key, Buffer] = {}
        self._all: list[Buffer] = []
        last = _last_regions(plan)
        free: dict[tuple[str, TensorSpec], list[Buffer]] = {}
        dying: dict[int, list[tuple[Key, tuple[str, TensorSpec]]]] = {}
        for number, placed in enumerate(plan.regions):
            for value in (*placed.region.inputs, *placed.region.outputs):
                key = (placed.device, value.name)
                if key in self._buffers:
                    continue
                kind = (placed.device, resolved(value.spec, sizes, value.name))
                reusable = free.get(kind)
                if reusable:
                    self._buffers[key] = reusable.pop()
                else:
                    self._buffers[key] = devices[placed.device].allocate(kind[1])
                    self._all.append(self._buffers[key])
                dying.setdefault(last[key], []).append((key, kind))
            for key, kind in dying.pop(number, ()):
                free.setdefault(kind, []).append(self._buffers[key])
        self._of_region = [
            {v.name: self._buffers[placed.device, v.name] for v in (*placed.region.inputs, *placed.region.outputs)}
            for placed in plan.regions
        ]

    @property
    def num_buffers(self) -> int:
        """Buffers that were allocated."""
        return len(self._all)

    def buffer(self, value: Value, device: str) -> Buffer:
        """The buffer of `value` on `device`."""
        return self._buffers[device, value.name]

    def of_region(self, number: int) -> Mapping[str, Buffer]:
        """Bindings of the region with that number, by value name."""
        return self._of_region[number]

    def close(self) -> None:
        """Free all buffers."""
        for buffer in self._all:
            buffer.close()


def _last_regions(plan: Plan) -> dict[Key, int]:
    """(device, value) -> number of the last region before which, or in which, its content is needed."""
    last: dict[Key, int] = {}
    for number, placed in enumerate(plan.regions):
        for value in (*placed.region.inputs, *placed.region.outputs):
            last[placed.device, value.name] = number
        for transfer in plan.transfers:
            if transfer.before_region == number and transfer.source is not None:
                last[transfer.source, transfer.value.name] = number
    results = {v.name for v in plan.graph.outputs.values()}
    return {key: len(plan.regions) if key[1] in results else number for key, number in last.items()}
