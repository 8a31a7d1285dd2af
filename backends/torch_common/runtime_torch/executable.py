"""A compiled region: a flat list of bound launches per step, without waiting for the device in between."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from runtime.backend import (
    Buffer,
    ExecutionFailed,
    InvalidArgument,
    Manifest,
    Node,
    Region,
    RuntimeFault,
    Unsupported,
    Value,
)
from runtime_torch.accelerator import Accelerator, FailedEvent, TorchEvent
from runtime_torch.buckets import DEPENDENT, find_bucket, is_paddable
from runtime_torch.calls import NO_FAULT, Call, Shared, Site
from runtime_torch.capture import CapturedProgram, Program
from runtime_torch.checking import Checker
from runtime_torch.errors import translated
from runtime_torch.lowering import LOWER, fusions, places
from runtime_torch.memory import Allocator, Lifetime, TorchBuffer, assign_slots, own
from runtime_torch.settings import Settings
from runtime_torch.staging import Inbox

NUM_EAGER = 8
"""Prepared steps that are kept; one of other sizes is prepared anew."""


@dataclass(frozen=True)
class Padding:
    """Sizes that a step is padded to, and what stands in front of its inputs, see `Inbox`."""

    dims: Mapping[str, int]
    entries: Any


class RegionExecutable:
    """Intermediates share memory by liveness, at the largest sizes of the region.

    Where the device captures, steps of few tokens are padded to a bucket and replayed. Errors that kernels find in the
    contents of indices come back with the event, in a record of one number.
    """

    def __init__(
        self,
        region: Region,
        resident: Mapping[str, Buffer],
        accelerator: Accelerator,
        settings: Settings,
        manifest: Manifest,
        shared: Shared,
        allocator: Allocator,
        counters: dict[str, int],
    ) -> None:
        self._region, self._accelerator, self._settings = region, accelerator, settings
        self._counters, self._shared = counters, shared
        # by value, not by name: an expanded composite may have a value that is called like a weight
        self._resident = {v: own(resident[v.name]) for v in region.resident}
        self._programs: OrderedDict[tuple[object, ...], Program] = OrderedDict()
        self._graph_pool: Any = None
        _check_claims(region, manifest)
        self._state_of = dict(region.aliases)
        self._symbols = sorted({d for n in region.nodes for d in _symbols(n)} | set(region.dims))
        self._fused = fusions(region)
        self._owned: list[TorchBuffer] = []
        self._what = f"region {region.name}"
        self._boundary = (*region.inputs, *region.outputs)
        self._free = [name for name in region.dims if name not in DEPENDENT]
        self._buckets: dict[tuple[object, ...], Padding | None] = {}
        self._records: list[torch.Tensor] = []
        self._inbox: Inbox | None = None
        try:
            self._pool = self._allocate_pool(allocator)
            if settings.capture and is_paddable(region):
                self._inbox = Inbox(region, settings, accelerator, allocator)
                self._owned += self._inbox.owned
        except BaseException:
            self.close()
            raise

    @property
    def fingerprint(self) -> str:
        """Identifies kernels and options in reports."""
        ops = ", ".join(dict.fromkeys(n.op.key for n in self._region.nodes))
        how = f"{self._settings.device_type} {self._settings.precision}"
        return f"{self._settings.backend} {how}{' captured' if self._settings.capture else ''}: {ops}"

    @property
    def num_replays(self) -> int:
        """Steps that were replayed from a graph."""
        return sum(p.num_replays for p in self._programs.values())

    def submit(self, bindings: Mapping[str, Buffer], dims: Mapping[str, int]) -> TorchEvent | FailedEvent:
        """Start one run; the event carries its error."""
        try:
            with self._accelerator.use():
                return self._submit(bindings, dims)
        except RuntimeFault as error:
            return FailedEvent(error)

    def close(self) -> None:
        """Free what was compiled, and the pool; resident buffers belong to the caller."""
        self._accelerator.synchronize()
        for buffer in self._owned:
            buffer.close()
        self._owned, self._resident, self._pool = [], {}, {}
        self._programs.clear()

    def _submit(self, bindings: Mapping[str, Buffer], dims: Mapping[str, int]) -> TorchEvent:
        bound = {v: own(bindings[v.name]) for v in self._boundary}
        padding = self._padding(bound, dims)
        with translated(self._what):
            if padding is None:
                for buffer in bound.values():
                    buffer.settle()
                program = self._program(bound, dims, None)
                self._shared.fault.fill_(NO_FAULT)
            else:
                assert self._inbox is not None
                program = self._program(bound, padding.dims, padding)
                self._inbox.send(padding.entries, bound, dims)
            try:
                program.run()
            except BaseException:
                self._forget(program)  # it may be half made
                raise
            record = self._records.pop() if self._records else self._accelerator.pinned(1, torch.int64)
            record.copy_(self._shared.fault, non_blocking=True)
        self._counters["kernels_run"] += program.num_kernels
        event = self._accelerator.mark()
        if padding is not None and self._inbox is not None:
            self._inbox.sent(event)

        def find_fault() -> Exception | None:
            found = int(record)
            self._records.append(record)
            return program.checks.fault(found)

        return TorchEvent(event, self._what, find_fault, keep=record)

    def _forget(self, program: Program) -> None:
        self._programs = OrderedDict((k, p) for k, p in self._programs.items() if p is not program)

    def _padding(self, bound: Mapping[Value, TorchBuffer], dims: Mapping[str, int]) -> Padding | None:
        """The bucket of a step, if it has one and the outputs have room for it; looked up where it is known."""
        if self._inbox is None:
            return None
        key = (*[dims.get(name) for name in self._free], *[bound[v].nbytes for v in self._boundary])
        if key not in self._buckets:
            made = find_bucket(self._region, self._settings, dims)
            direct = [v for v in self._boundary if v not in self._inbox.buffers]
            fits = made is not None and all(bound[v].nbytes >= v.spec.nbytes(made) for v in direct)
            self._buckets[key] = Padding(made, self._inbox.entries(made)) if made is not None and fits else None
        return self._buckets[key]

    def _program(
        self, bound: Mapping[Value, TorchBuffer], sizes: Mapping[str, int], padding: Padding | None
    ) -> Program:
        """The prepared step for these sizes and this memory."""
        key = (padding is None, *[sizes.get(s) for s in self._symbols], *[b.address for b in bound.values()])
        program = self._programs.get(key)
        if program is None:
            limit = NUM_EAGER if padding is None else self._settings.max_graphs
            same = [k for k in self._programs if k[0] == (padding is None)]
            if len(same) >= limit:
                self._accelerator.synchronize()
                del self._programs[same[0]]
            program = self._programs[key] = self._prepare(bound, sizes, padding is not None)
        self._programs.move_to_end(key)
        return program

    def _prepare(self, bound: Mapping[Value, TorchBuffer], sizes: Mapping[str, int], is_padded: bool) -> Program:
        """Staging, checks of what comes from outside (a refused step changes no state), then the nodes."""
        calls: list[Call] = []
        if is_padded and self._inbox is not None:
            calls.append(self._inbox.unpack_call(sizes, self._shared.fault))
            bound = {**bound, **self._inbox.buffers}
        checker = Checker(frozenset((*self._region.inputs, *self._region.resident)), self._shared)
        sites = {node: self._site(node, bound, sizes) for node in self._region.nodes}
        for site in sites.values():
            checker.add(site)
        calls += checker.calls()
        made = chain(calls, self._lowered(sites))
        if not is_padded or not self._accelerator.has_graphs:
            return Program(made, checker.checks)
        return CapturedProgram(made, checker.checks, self._accelerator, self._pool_of_graphs)

    def _lowered(self, sites: Mapping[Node, Site]) -> Iterator[Call]:
        """Calls of the nodes, one after the other."""
        absorbed = {node for fusion in self._fused.values() for node in fusion.nodes[:-1]}
        for node, site in sites.items():
            self._shared.workspace.reset()
            if node in absorbed or not all(_size(site, i) for i in range(len(node.outputs))):
                continue
            fusion = self._fused.get(node)
            yield from LOWER[node.op.key](site) if fusion is None else fusion.lower(*(sites[n] for n in fusion.nodes))

    def _pool_of_graphs(self) -> Any:
        if self._graph_pool is None:
            self._graph_pool = self._accelerator.graph_pool()
        return self._graph_pool

    def _site(self, node: Node, bound: Mapping[Value, TorchBuffer], dims: Mapping[str, int]) -> Site:
        return Site(
            node=node,
            inputs={port: self._buffer(value, bound) for port, value in node.inputs.items()},
            outputs=tuple(self._buffer(value, bound) for value in node.outputs),
            dims=dims,
            shared=self._shared,
        )

    def _buffer(self, value: Value, bound: Mapping[Value, TorchBuffer]) -> TorchBuffer:
        value = value if value in bound else self._state_of.get(value, value)
        for source in (bound, self._pool, self._resident):
            if value in source:
                return source[value]
        raise ExecutionFailed(f"{self._region.name} has no buffer for '{value.name}'")

    def _allocate_pool(self, allocator: Allocator) -> dict[Value, TorchBuffer]:
        slots, sizes = assign_slots(_lifetimes(self._region, places(self._region, self._fused)))
        buffers = [allocator.allocate(size, f"intermediates of {self._region.name}") for size in sizes]
        self._owned += buffers
        return {value: buffers[slot] for value, slot in slots.items()}


def _check_claims(region: Region, manifest: Manifest) -> None:
    """Raise Unsupported for nodes that the manifest excludes: no kernel was written with them in mind."""
    reasons = []
    for node in region.nodes:
        match = manifest.match(node.op.key, node.facts(region.dims))
        if match.coverage != "full" or node.op.key not in LOWER:
            reasons += [f"node {node.name} ({node.op.key}): {why}" for why in match.reasons or ("no kernel",)]
    if reasons:
        raise Unsupported(f"{region.name} cannot be compiled for {manifest.backend}", reasons=reasons)


def _size(site: Site, index: int) -> int:
    size = 1
    for dim in site.node.outputs[index].spec.resolve(site.dims):
        size *= dim
    return size


def _names(value: Value) -> list[str]:
    return [d for d in value.spec.shape if isinstance(d, str)]


def _symbols(node: Node) -> list[str]:
    return [d for v in (*node.inputs.values(), *node.outputs) for d in _names(v)]


def _lifetimes(region: Region, places: Mapping[Node, int]) -> list[Lifetime]:
    """Intermediates that no one outside sees, at the largest sizes of the region; `places` says when a node runs."""
    sizes = {name: span.hi for name, span in region.dims.items()}
    outside = {*region.inputs, *region.outputs, *region.resident}
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    for number, node in enumerate(region.nodes):
        for value in node.inputs.values():
            last[value] = max(places[node], last.get(value, 0))
        for value in node.outputs:
            if value in outside or value in region.aliases:
                continue
            missing = [d for d in _names(value) if d not in sizes]
            if missing:
                raise InvalidArgument(f"'{value.name}' is {value.spec}, and dimension {missing[0]} has no range")
            first[value], last[value] = number, places[node]
    return [Lifetime(value, value.spec.nbytes(sizes), born, last[value]) for value, born in first.items()]
