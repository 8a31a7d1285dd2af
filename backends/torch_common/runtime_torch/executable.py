"""A compiled region: a flat list of bound launches per step, without waiting for the device in between."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
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
from runtime_torch.buckets import NUM_SIZES, Bucket, find_bucket, stage_call
from runtime_torch.calls import NO_FAULT, Call, Shared, Site
from runtime_torch.capture import CapturedProgram, Program
from runtime_torch.checking import Checker
from runtime_torch.errors import translated
from runtime_torch.lowering import LOWER, fusions, places
from runtime_torch.memory import DTYPES, Allocator, Lifetime, TorchBuffer, assign_slots, own
from runtime_torch.settings import Settings

NUM_EAGER = 8
"""Prepared steps that are kept; one of other sizes is prepared anew."""


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
        self._sizes = torch.zeros(NUM_SIZES, dtype=torch.int32, device=accelerator.device)
        try:
            self._pool = self._allocate_pool(allocator)
            self._staged = self._allocate_staged(allocator) if settings.capture else {}
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
        what = f"region {self._region.name}"
        bound = {v: own(bindings[v.name]) for v in (*self._region.inputs, *self._region.outputs)}
        bucket = find_bucket(self._region, self._settings, dims) if self._settings.capture else None
        if bucket is not None and not self._outputs_fit(bound, bucket):
            bucket = None
        with translated(what):
            if bucket is not None:
                true = [dims[s] for s in bucket.symbols] + [0] * (NUM_SIZES - len(bucket.symbols))
                self._sizes.copy_(_on_its_way(true, self._accelerator), non_blocking=True)
            program = self._program(bound, dims, bucket)
            self._shared.fault.fill_(NO_FAULT)
            program.run()
            record = self._accelerator.to_host(self._shared.fault)
        self._counters["kernels_run"] += program.num_kernels
        event = self._accelerator.mark()
        return TorchEvent(event, what, lambda: program.checks.fault(int(record.item())), keep=record)

    def _outputs_fit(self, bound: Mapping[Value, TorchBuffer], bucket: Bucket) -> bool:
        return all(bound[v].nbytes >= v.spec.nbytes(bucket.dims) for v in self._region.outputs)

    def _program(self, bound: Mapping[Value, TorchBuffer], dims: Mapping[str, int], bucket: Bucket | None) -> Program:
        """The prepared step for these sizes and this memory."""
        sizes = dims if bucket is None else bucket.dims
        addresses = (b.raw.data_ptr() for b in bound.values())
        key = (bucket is None, *(sizes.get(s) for s in self._symbols), *addresses)
        program = self._programs.get(key)
        if program is None:
            limit = NUM_EAGER if bucket is None else self._settings.max_graphs
            same = [k for k in self._programs if k[0] == (bucket is None)]
            if len(same) >= limit:
                self._accelerator.synchronize()
                del self._programs[same[0]]
            program = self._programs[key] = self._prepare(bound, sizes, bucket)
        self._programs.move_to_end(key)
        return program

    def _prepare(self, bound: Mapping[Value, TorchBuffer], sizes: Mapping[str, int], bucket: Bucket | None) -> Program:
        """Staging, checks of what comes from outside (a refused step changes no state), then the nodes."""
        calls: list[Call] = []
        if bucket is not None:
            bound, calls = self._stage(bound, bucket)
        from_outside = frozenset((*self._region.inputs, *self._region.resident))
        checker = Checker(from_outside)
        sites = {node: self._site(node, bound, sizes) for node in self._region.nodes}
        for site in sites.values():
            calls += checker.calls(site)
        absorbed = {node for fusion in self._fused.values() for node in fusion.nodes[:-1]}
        for node, site in sites.items():
            self._shared.workspace.reset()
            if node in absorbed or not all(_size(site, i) for i in range(len(node.outputs))):
                continue
            fusion = self._fused.get(node)
            calls += LOWER[node.op.key](site) if fusion is None else fusion.lower(*(sites[n] for n in fusion.nodes))
        if bucket is None or not self._accelerator.has_graphs:
            return Program(calls, checker.checks)
        return CapturedProgram(calls, checker.checks, self._accelerator, self._pool_of_graphs)

    def _stage(self, bound: Mapping[Value, TorchBuffer], bucket: Bucket) -> tuple[dict[Value, TorchBuffer], list[Call]]:
        staged: dict[Value, TorchBuffer] = dict(bound)
        calls: list[Call] = []
        for value in self._region.inputs:
            target = self._staged[value]
            ports = {p for n in self._region.nodes for p, v in n.inputs.items() if v is value}
            view = target.view(DTYPES[value.spec.format.name], value.spec.resolve(bucket.dims))
            calls.append(stage_call(value, ports, bucket, bound[value], view, self._sizes))
            staged[value] = target
        return staged, calls

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

    def _allocate_staged(self, allocator: Allocator) -> dict[Value, TorchBuffer]:
        """Step inputs at the largest sizes, where padded ones are kept."""
        sizes = {name: span.hi for name, span in self._region.dims.items()}
        inputs: list[Value] = [v for v in self._region.inputs if all(d in sizes for d in _names(v))]
        made = {v: allocator.allocate(v.spec.nbytes(sizes), f"step input {v.name}") for v in inputs}
        self._owned += made.values()
        return made


def _check_claims(region: Region, manifest: Manifest) -> None:
    """Raise Unsupported for nodes that the manifest excludes: no kernel was written with them in mind."""
    reasons = []
    for node in region.nodes:
        match = manifest.match(node.op.key, node.facts(region.dims))
        if match.coverage != "full" or node.op.key not in LOWER:
            reasons += [f"node {node.name} ({node.op.key}): {why}" for why in match.reasons or ("no kernel",)]
    if reasons:
        raise Unsupported(f"{region.name} cannot be compiled for {manifest.backend}", reasons=reasons)


def _on_its_way(values: list[int], accelerator: Accelerator) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, pin_memory=accelerator.is_async)


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
