"""The placement in one line: what runs natively, what does not, with its share of the work and a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runtime.dtypes import Span
from runtime.executor.placement import How, Placement, Placements
from runtime.ops import Work

OPERATIONS_PER_BYTE = 10
"""Arithmetic operations that take as long as moving one byte, in the order of magnitude of processors and memories:
only used to weigh operations against each other in a report."""


@dataclass(frozen=True)
class Share:
    """Nodes that run the same way on the same device."""

    device: str
    how: How
    op_names: tuple[str, ...]
    num_nodes: int
    work: float
    example: str

    @property
    def percent(self) -> str:
        """The share of the work as text."""
        return f"{100 * self.work:.1f} %"


@dataclass(frozen=True)
class PlacementSummary:
    """Shares of the work at representative sizes (`dims`), largest native share first, host last."""

    shares: tuple[Share, ...]
    dims: Mapping[str, int]
    host: str

    @property
    def host_share(self) -> float:
        """The part of the work that falls to the host, 0 to 1."""
        return sum(s.work for s in self.shares if s.how == "host")

    def line(self) -> str:
        """For example `linear native (91.4 % of the work); host: 14 other operations (8.6 %), e.g. rms_norm: ...`."""
        if not self.shares:
            return "nothing to run"
        devices = {s.device for s in self.shares if s.how != "host"}
        if len(self.shares) == 1 and self.shares[0].how == "native":
            only = self.shares[0]
            return f"all {_count(len(only.op_names), 'operation')} native (100.0 % of the work)"
        return "; ".join(_describe(share, len(devices) > 1, i == 0) for i, share in enumerate(self.shares))


def summarize(placements: Placements, dims: Mapping[str, int], host: str) -> PlacementSummary:
    """Group the nodes by device and kind, and weigh them at `dims`."""
    costs = [_cost(p.node.work(dims)) for p in placements.by_node]
    total = sum(costs) or 1.0
    groups: dict[tuple[str, How], list[tuple[Placement, float]]] = {}
    for placement, cost in zip(placements.by_node, costs):
        groups.setdefault((placement.device, placement.how), []).append((placement, cost / total))
    shares = [_share(device, how, members) for (device, how), members in groups.items()]
    order = {"native": 0, "decomposed": 1, "converted": 2, "host": 3}
    shares.sort(key=lambda s: (order[s.how], -s.work))
    return PlacementSummary(tuple(shares), dict(dims), host)


def report_dims(dims: Mapping[str, Span]) -> dict[str, int]:
    """Sizes for a report: one token of one sequence, at half of the longest context that the plan allows."""
    wanted = {"T": 1, "S": 1, "R": 1, "Q": 2}
    return {
        name: max(span.lo, min(span.hi, wanted.get(name, span.lo + (span.hi - span.lo) // 2)))
        for name, span in dims.items()
    }


def _cost(work: Work) -> float:
    return max(work.bytes_read + work.bytes_written, work.operations / OPERATIONS_PER_BYTE)


def _share(device: str, how: How, members: Iterable[tuple[Placement, float]]) -> Share:
    members = sorted(members, key=lambda m: -m[1])
    names = tuple(dict.fromkeys(p.node.op.name for p, _ in members))
    example = ""
    if how != "native":
        example = next((f"{p.node.op.name}: {p.reasons[0]}" for p, _ in members if p.reasons), "")
    return Share(device, how, names, len(members), sum(w for _, w in members), example)


def _describe(share: Share, names_device: bool, is_first: bool) -> str:
    if share.how == "host":
        other = "operation" if is_first else "other operation"
        text = f"{share.device}: {_count(len(share.op_names), other)} ({share.percent})"
    else:
        names = share.op_names
        what = ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
        on = f" on {share.device}" if names_device else ""
        text = f"{what} {share.how}{on} ({share.percent}{' of the work' if is_first else ''})"
    return f"{text}, e.g. {share.example}" if share.example else text


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
