"""Memory by liveness: where each intermediate lies in its device's arena, and what weights and states take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.dtypes import Span
from runtime.executor.regions import PlacedRegion, Transfer
from runtime.graph import Graph, Value

ALIGNMENT = 64
"""Bytes: a cache line, and the width of the widest vector registers."""


@dataclass(frozen=True)
class Interval:
    """A block of memory and the steps, first to last inclusive, during which its content is needed."""

    name: str
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class ArenaPlan:
    """Offsets of all intervals in one arena: no two that are needed at the same step overlap."""

    offsets: Mapping[str, int]
    peak_bytes: int
    sum_bytes: int
    """What the intervals would take without reuse."""


@dataclass(frozen=True)
class DeviceMemory:
    """What a plan takes on one device, with every symbolic dimension at its largest value."""

    weights_bytes: int
    states_bytes: int
    arena: ArenaPlan

    @property
    def total_bytes(self) -> int:
        """Weights, states and the arena of intermediates."""
        return self.weights_bytes + self.states_bytes + self.arena.peak_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "weights_bytes": self.weights_bytes,
            "states_bytes": self.states_bytes,
            "intermediates_bytes": self.arena.peak_bytes,
            "intermediates_bytes_without_reuse": self.arena.sum_bytes,
        }


def plan_arena(intervals: Sequence[Interval]) -> ArenaPlan:
    """Place the largest first, each at the lowest offset that is free for as long as it lives."""
    placed: list[tuple[int, int, Interval]] = []
    offsets: dict[str, int] = {}
    peak = 0
    for interval in sorted(intervals, key=lambda i: (-i.nbytes, i.first, i.name)):
        size = _aligned(interval.nbytes)
        offset = 0
        for start, end, other in placed:  # ascending by start
            if other.last < interval.first or other.first > interval.last:
                continue
            if offset + size <= start:
                break
            offset = max(offset, end)
        offsets[interval.name] = offset
        peak = max(peak, offset + size)
        _insert(placed, (offset, offset + size, interval))
    return ArenaPlan(offsets, peak, sum(_aligned(i.nbytes) for i in intervals))


def plan_memory(
    graph: Graph,
    regions: Sequence[PlacedRegion],
    transfers: Sequence[Transfer],
    dims: Mapping[str, int] | None = None,
) -> dict[str, DeviceMemory]:
    """Memory per device; symbolic dimensions have the values of `dims`, the others their largest."""
    sizes = largest(graph.dims) | dict(dims or {})
    plans = {}
    for device in dict.fromkeys(r.device for r in regions):
        resident = dict.fromkeys(v for r in regions if r.device == device for v in r.region.resident)
        weights = sum(v.spec.nbytes(sizes) for v in resident if v.kind in ("weight", "constant"))
        states = sum(v.spec.nbytes(sizes) for v in resident if v.kind == "state")
        arena = plan_arena(_intervals(graph, device, regions, transfers, sizes))
        plans[device] = DeviceMemory(weights, states, arena)
    return plans


def largest(dims: Mapping[str, Span]) -> dict[str, int]:
    """Every symbolic dimension at its largest value."""
    return {name: span.hi for name, span in dims.items()}


def _intervals(
    graph: Graph,
    device: str,
    regions: Sequence[PlacedRegion],
    transfers: Sequence[Transfer],
    sizes: Mapping[str, int],
) -> list[Interval]:
    """Live ranges on `device`, in steps of nodes; a transfer happens at the step of the first node after it."""
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    step = 0
    last_step = sum(len(r.region.nodes) for r in regions)
    for number, placed in enumerate(regions):
        for transfer in transfers:
            if transfer.before_region == number:
                if transfer.target == device:
                    first.setdefault(transfer.value, step)
                elif transfer.source == device:
                    last[transfer.value] = step
        for node in placed.region.nodes:
            if placed.device == device:
                for value in node.inputs.values():
                    if value in first:
                        last[value] = step
                for value in node.outputs:
                    if value not in placed.region.aliases:
                        first[value] = last[value] = step
            step += 1
    for value in graph.outputs.values():
        if value in first:
            last[value] = last_step
    return [Interval(v.name, v.spec.nbytes(sizes), first[v], last.get(v, first[v])) for v in first]


def _insert(placed: list[tuple[int, int, Interval]], item: tuple[int, int, Interval]) -> None:
    low, high = 0, len(placed)
    while low < high:
        middle = (low + high) // 2
        if placed[middle][0] < item[0]:
            low = middle + 1
        else:
            high = middle
    placed.insert(low, item)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
