"""The plan of a graph: placement, regions, transfers and memory, made from manifests alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.backend import Manifest, reference_manifest
from runtime.errors import InvalidArgument
from runtime.executor.memory import DeviceMemory, plan_memory
from runtime.executor.placement import Fallback, Placements, place
from runtime.executor.regions import PlacedRegion, Transfer, cut_regions, list_transfers
from runtime.executor.summary import PlacementSummary, report_dims, summarize
from runtime.graph import Graph, fold_constants, validate

HOST = "host"


@dataclass(frozen=True, eq=False)
class Plan:
    """How a graph will run; no device needs to be open, or present.

    `host` is the name of the device that computes by reference; it occurs in `regions` only where it is needed.
    """

    graph: Graph
    placements: Placements
    summary: PlacementSummary
    regions: tuple[PlacedRegion, ...]
    transfers: tuple[Transfer, ...]
    memory: Mapping[str, DeviceMemory]
    fallback: Fallback
    host: str

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices that run something."""
        return tuple(self.memory)

    def describe(self) -> list[str]:
        """Lines for a person: placement, regions and transfers, memory per device."""
        lines = [self.summary.line()]
        crossing = [t for t in self.transfers if t.source is not None]
        sizes = self.summary.dims
        per_step = sum(t.value.spec.nbytes(sizes) for t in crossing)
        regions = f"{len(self.regions)} region{'' if len(self.regions) == 1 else 's'}"
        moved = f"{len(crossing)} transfers between devices per step, {_size(per_step)} per token" if crossing else ""
        lines.append(f"{regions} on {', '.join(self.devices)}" + (f"; {moved}" if moved else ""))
        for device, memory in self.memory.items():
            lines.append(
                f"{device}: weights {_size(memory.weights_bytes)}, KV cache {_size(memory.states_bytes)}, "
                f"intermediates {_size(memory.arena.peak_bytes)} "
                f"({_size(memory.arena.sum_bytes)} without reuse)"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "graph": self.graph.name,
            "fallback": self.fallback,
            "summary": self.summary.line(),
            "host_share": self.summary.host_share,
            "dims": {name: [span.lo, span.hi, span.step] for name, span in self.graph.dims.items()},
            "placements": [p.to_json() for p in self.placements.by_node],
            "regions": [{"device": r.device, "nodes": [n.name for n in r.region.nodes]} for r in self.regions],
            "transfers": [t.to_json() for t in self.transfers],
            "memory": {name: memory.to_json() for name, memory in self.memory.items()},
        }


def make_plan(
    graph: Graph,
    devices: Mapping[str, Manifest] | Sequence[tuple[str, Manifest]],
    *,
    host: str = HOST,
    fallback: Fallback = "host",
    overrides: Sequence[tuple[str, str]] = (),
    dims_for_report: Mapping[str, int] | None = None,
    state_dims: Mapping[str, int] | None = None,
) -> Plan:
    """Plan `graph` for `devices` (best first). An entry called `host` is where the fallback runs.

    Without such an entry, the fallback is the reference device. If it is the only entry, everything runs there and
    counts as native. `overrides` are (pattern of node names, device name), see `matches`; `dims_for_report` are the
    sizes at which shares of the work are computed (default: one token at half of the context); `state_dims` the sizes
    of states for the memory plan (default: the largest).

    Raises InvalidArgument for a graph that breaks a rule, FallbackForbidden or Unsupported with reasons.
    """
    given = list(devices.items() if isinstance(devices, Mapping) else devices)
    if not given:
        raise InvalidArgument(f"graph {graph.name} cannot be planned without a device")
    host_manifest = dict(given).get(host) or reference_manifest(host)
    others = [(name, manifest) for name, manifest in given if name != host] or given
    validate(graph)
    placements = place(fold_constants(graph), others, (host, host_manifest), fallback, overrides)
    regions = cut_regions(placements)
    transfers = list_transfers(regions)
    dims = report_dims(graph.dims) | dict(dims_for_report or {})
    return Plan(
        graph=placements.graph,
        placements=placements,
        summary=summarize(placements, dims, host),
        regions=regions,
        transfers=transfers,
        memory=plan_memory(placements.graph, regions, transfers, state_dims),
        fallback=fallback,
        host=host,
    )


def _size(nbytes: int) -> str:
    if nbytes < 1000:
        return f"{nbytes} B"
    value = float(nbytes)
    for unit in ("KB", "MB", "GB", "TB"):
        value /= 1000
        if value < 1000 or unit == "TB":
            break
    return f"{value:.3g} {unit}"
