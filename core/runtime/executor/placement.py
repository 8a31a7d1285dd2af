"""Decides, once and over whole ranges, which device runs each node, and says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from runtime.backend import Manifest, Rule
from runtime.errors import FallbackForbidden, InvalidArgument, Unsupported
from runtime.executor.fit import Fit, converted_value, fit_node
from runtime.executor.selection import matches
from runtime.graph import Graph, Node, Value, eliminate_dead, expand_composites, expand_node

Fallback = Literal["forbid", "decompose", "host"]
FALLBACKS: tuple[Fallback, ...] = ("forbid", "decompose", "host")
How = Literal["native", "decomposed", "converted", "host"]


@dataclass(frozen=True)
class Placement:
    """Where one node runs.

    native      by a kernel of the device, over the whole range; also as a part of a composite that the device does
                not have at all: fusion is optional
    decomposed  as a part of a composite that the device has, but not for these facts
    converted   by a kernel for another format of a weight, which is decoded into it at load
    host        by reference; `reasons` says why the device cannot
    """

    node: Node
    device: str
    how: How
    rule: Rule | None = None
    reasons: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        numerics = None if self.rule is None else self.rule.numerics
        return {
            "node": self.node.name,
            "op": self.node.op.key,
            "device": self.device,
            "how": self.how,
            "numerics": None if numerics is None else numerics.__dict__,
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True)
class Placements:
    """The graph as it will run (composites expanded, weights exchanged), and the placement of each of its nodes.

    `converted` maps the name of a weight that is decoded at load to the name of the stored one.
    """

    graph: Graph
    by_node: tuple[Placement, ...]
    converted: Mapping[str, str] = field(default_factory=dict)

    def device_of(self, node: Node) -> str:
        """Name of the device that runs `node`."""
        return next(p.device for p in self.by_node if p.node is node)


def place(
    graph: Graph,
    devices: Sequence[tuple[str, Manifest]],
    host: tuple[str, Manifest],
    policy: Fallback = "host",
    overrides: Sequence[tuple[str, str]] = (),
) -> Placements:
    """Place every node of `graph` on one of `devices` (best first) or, where `policy` allows, on `host`.

    The order for a node: native, converted or decomposed on the same device, another device, host. Nodes that share a
    KV cache go to one device. `overrides` are (pattern of node names, device); the first that matches counts, and puts
    that device first for the node.

    forbid     kernels of `devices` only; a composite may be run as its parts if all of these are native
    decompose  also weights decoded at load
    host       also the host, for whatever is left

    Raises FallbackForbidden or Unsupported with all reasons, and InvalidArgument for an unknown device or policy.
    """
    placer = _Placer(graph, devices, host, policy, overrides)
    return placer.run()


class _Placer:
    def __init__(
        self,
        graph: Graph,
        devices: Sequence[tuple[str, Manifest]],
        host: tuple[str, Manifest],
        policy: Fallback,
        overrides: Sequence[tuple[str, str]],
    ) -> None:
        if policy not in FALLBACKS:
            raise InvalidArgument(f"fallback '{policy}' is unknown; it is one of {', '.join(FALLBACKS)}")
        self.graph = graph
        self.devices = dict(devices)
        self.host_name, self.host_manifest = host
        self.policy = policy
        self.overrides = overrides
        self._why_expanded: dict[str, tuple[str, ...]] = {}
        self._expanded: dict[str, Node] = {}
        self._given = {node.name for node in graph.nodes}
        known = {*self.devices, self.host_name}
        for pattern, device in overrides:
            if device not in known:
                raise InvalidArgument(
                    f"placement '{pattern}={device}': there is no device '{device}'; "
                    f"present: {', '.join(sorted(known))}"
                )

    def run(self) -> Placements:
        graph = expand_composites(self.graph, self._keeps_composite)
        placed: dict[Node, tuple[str, Fit, tuple[str, ...]]] = {}
        refusals: list[str] = []
        for group in _state_groups(graph):
            try:
                placed.update(self._place_group(graph, group))
            except _NoDevice as refused:
                refusals += refused.reasons
        if refusals:
            self._refuse(refusals)
        return self._result(graph, placed)

    def _candidates(self, node: Node) -> list[tuple[str, Manifest]]:
        """Devices in the order in which they are tried for `node`; the host comes last, where it is allowed."""
        order = dict(self.devices)
        if self.policy == "host":
            order[self.host_name] = self.host_manifest
        chosen = next((device for pattern, device in self.overrides if matches(pattern, node.name)), None)
        if chosen is not None:
            manifest = self.devices.get(chosen, self.host_manifest)
            order = {chosen: manifest, **{n: m for n, m in order.items() if n != chosen}}
        return list(order.items())

    def _reason(self, device: str, reason: str) -> str:
        """With the name of the device, where there are several."""
        return reason if len(self.devices) == 1 and device in self.devices else f"{device}: {reason}"

    def _fit(self, node: Node, manifest: Manifest) -> Fit:
        return fit_node(node, manifest, self.graph.dims, may_convert=self.policy != "forbid")

    def _keeps_composite(self, node: Node) -> bool:
        """Whether the first device that can take the whole composite has a kernel for it."""
        reasons: list[str] = []
        for name, manifest in self._candidates(node):
            fit = self._fit(node, manifest)
            if fit.kind != "none":
                return True
            reasons += [self._reason(name, r) for r in fit.reasons]
            if self._takes_parts(node, manifest):
                break
        self._why_expanded[node.name] = tuple(reasons)
        self._expanded[node.name] = node
        return False

    def _takes_parts(self, node: Node, manifest: Manifest) -> bool:
        parts = expand_node(node, self.graph.dims).nodes
        return all(
            self._fit(p, manifest).kind != "none" or (p.op.is_composite and self._takes_parts(p, manifest))
            for p in parts
        )

    def _place_group(self, graph: Graph, group: list[Node]) -> dict[Node, tuple[str, Fit, tuple[str, ...]]]:
        reasons: dict[Node, list[str]] = {node: [] for node in group}
        for name, manifest in self._candidates(group[0]):
            fits = {node: self._fit(node, manifest) for node in group}
            misfits = [node for node in group if fits[node].kind == "none"]
            if not misfits:
                return {node: (name, fits[node], tuple(reasons[node])) for node in group}
            for node in group:
                if fits[node].kind == "none":
                    reasons[node] += [self._reason(name, r) for r in fits[node].reasons]
                else:
                    other = f"{misfits[0].name} ({misfits[0].op.name})"
                    reasons[node].append(f"shares a KV cache with {other}, which {name} cannot run")
        raise _NoDevice([f"{node.name} ({node.op.key}): {r}" for node in group for r in reasons[node]])

    def _refuse(self, reasons: list[str]) -> None:
        names = ", ".join(self.devices) or "no device"
        message = f"{self.graph.name} cannot be placed on {names} with --fallback {self.policy}"
        reasons = list(dict.fromkeys(reasons))
        if self.policy == "host":
            raise Unsupported(message, reasons=reasons)
        raise FallbackForbidden(message, remedy="allow the host with --fallback host", reasons=reasons)

    def _result(self, graph: Graph, placed: Mapping[Node, tuple[str, Fit, tuple[str, ...]]]) -> Placements:
        converted: dict[str, str] = {}
        weights = dict(graph.weights)
        nodes: list[Node] = []
        placements: list[Placement] = []
        for node in graph.nodes:
            device, fit, reasons = placed[node]
            if fit.kind == "converted":
                reasons = (*reasons, *(self._reason(device, r) for r in fit.reasons))
                node, notes = _convert_weights(node, fit, weights, converted)
                reasons += notes
            composite = self._composite_of(node)
            how: How = "native"
            if device == self.host_name and self.host_name not in self.devices:
                how = "host"
            elif fit.kind == "converted":
                how = "converted"
            elif composite is not None and self._has_rule(device, self._expanded[composite]):
                how = "decomposed"
            if composite is not None:
                why = "; ".join(dict.fromkeys(self._why_expanded[composite]))
                reasons = (*reasons, f"part of {composite}: {why}")
            nodes.append(node)
            placements.append(Placement(node, device, how, fit.rule, reasons))
        result = eliminate_dead(replace(graph, nodes=tuple(nodes), weights=weights))
        alive = set(result.nodes)
        return Placements(result, tuple(p for p in placements if p.node in alive), converted)

    def _has_rule(self, device: str, node: Node) -> bool:
        return any(rule.op == node.op.key for rule in self.devices[device].rules)

    def _composite_of(self, node: Node) -> str | None:
        if node.name in self._given:
            return None
        return max((name for name in self._why_expanded if node.name.startswith(f"{name}.")), key=len, default=None)


class _NoDevice(Exception):  # noqa: N818  (never leaves this module)
    def __init__(self, reasons: list[str]) -> None:
        super().__init__()
        self.reasons = reasons


def _convert_weights(
    node: Node, fit: Fit, weights: dict[str, Value], converted: dict[str, str]
) -> tuple[Node, tuple[str, ...]]:
    """`node` with decoded weights in place of the stored ones, and a note for each."""
    inputs = dict(node.inputs)
    notes = []
    for port, target in fit.weights.items():
        stored = inputs[port]
        decoded = converted_value(stored, target)
        decoded = weights.setdefault(decoded.name, decoded)
        converted[decoded.name] = stored.name
        inputs[port] = decoded
        kind = "exactly" if target == "f32" and stored.spec.format.name != "f64" else "and rounded"
        notes.append(f"{stored.name} ({stored.spec.format.name}) is decoded {kind} to {target} at load")
    return replace(node, inputs=inputs), tuple(notes)


def _state_groups(graph: Graph) -> list[list[Node]]:
    """Nodes that must share a device, in order of their first node: those that touch the same state."""
    aliases = graph.state_aliases()
    group_of_state: dict[Value, list[Node]] = {}
    groups: list[list[Node]] = []
    for node in graph.nodes:
        states = dict.fromkeys(aliases.get(v, v) for v in node.inputs.values())
        touched = [v for v in states if v.kind == "state"]
        known = [group_of_state[v] for v in touched if v in group_of_state]
        group = known[0] if known else []
        if not known:
            groups.append(group)
        for other in known[1:]:
            if other is not group:
                group += other
                groups = [g for g in groups if g is not other]
                group_of_state.update((v, group) for v, g in group_of_state.items() if g is other)
        group.append(node)
        group_of_state.update((v, group) for v in touched)
    return groups
