"""Cuts a placed graph into regions: as few changes of device as the order of the data allows."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.executor.placement import Placements
from runtime.graph import Graph, Node, Region, Value, make_region


@dataclass(frozen=True)
class PlacedRegion:
    """A region and the device that compiles it."""

    device: str
    region: Region


@dataclass(frozen=True)
class Transfer:
    """A value that must be on `target` before the region with number `before_region` runs; `source` None: the caller
    binds it."""

    value: Value
    source: str | None
    target: str
    before_region: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "value": self.value.name,
            "spec": str(self.value.spec),
            "from": self.source,
            "to": self.target,
            "before_region": self.before_region,
        }


def cut_regions(placements: Placements) -> tuple[PlacedRegion, ...]:
    """Regions in an order of execution; together they hold every node once."""
    graph = placements.graph
    device_of = {p.node: p.device for p in placements.by_node}
    runs = _runs_by_device(graph, device_of)
    aliases = graph.state_aliases()
    user_of: dict[Value, set[int]] = {}
    for number, (_, nodes) in enumerate(runs):
        for node in nodes:
            for value in node.inputs.values():
                user_of.setdefault(value, set()).add(number)
    results = set(graph.outputs.values())
    regions = []
    for number, (device, nodes) in enumerate(runs):
        made = [v for node in nodes for v in node.outputs]
        needed = [v for v in made if v in results or user_of.get(v, set()) - {number}]
        name = f"{graph.name}.{number}.{device}"
        regions.append(PlacedRegion(device, make_region(name, nodes, graph.dims, needed, aliases)))
    return tuple(regions)


def list_transfers(regions: tuple[PlacedRegion, ...]) -> tuple[Transfer, ...]:
    """Every value that changes its device, once per device, before the first region there that needs it."""
    home = {v: placed.device for placed in regions for v in placed.region.outputs}
    present: set[tuple[Value, str]] = set(home.items())
    transfers = []
    for number, placed in enumerate(regions):
        for value in placed.region.inputs:
            if (value, placed.device) not in present:
                present.add((value, placed.device))
                transfers.append(Transfer(value, home.get(value), placed.device, number))
    return tuple(transfers)


def _runs_by_device(graph: Graph, device_of: Mapping[Node, str]) -> list[tuple[str, list[Node]]]:
    """Order the nodes so that each device keeps going for as long as it has something ready."""
    index = {node: i for i, node in enumerate(graph.nodes)}
    waits_for = _dependencies(graph)
    followers: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    missing = {node: len(before) for node, before in waits_for.items()}
    for node, before in waits_for.items():
        for earlier in before:
            followers[earlier].append(node)
    ready: dict[str, list[int]] = {device: [] for device in device_of.values()}
    for node in graph.nodes:
        if not missing[node]:
            heapq.heappush(ready[device_of[node]], index[node])
    runs: list[tuple[str, list[Node]]] = []
    while any(ready.values()):
        device = min((d for d in ready if ready[d]), key=lambda d: ready[d][0])
        run: list[Node] = []
        while ready[device]:
            node = graph.nodes[heapq.heappop(ready[device])]
            run.append(node)
            for follower in followers[node]:
                missing[follower] -= 1
                if not missing[follower]:
                    heapq.heappush(ready[device_of[follower]], index[follower])
        runs.append((device, run))
    return runs


def _dependencies(graph: Graph) -> dict[Node, set[Node]]:
    """Node -> nodes that must run before it: makers of its inputs, and readers of what it overwrites."""
    maker: dict[Value, Node] = {}
    readers: dict[Value, list[Node]] = {}
    waits_for: dict[Node, set[Node]] = {}
    for node in graph.nodes:
        before = {maker[v] for v in node.inputs.values() if v in maker}
        for overwritten in node.overwrites.values():
            before.update(readers.get(overwritten, ()))
        before.discard(node)
        waits_for[node] = before
        for value in node.inputs.values():
            readers.setdefault(value, []).append(node)
        maker.update((v, node) for v in node.outputs)
    return waits_for
