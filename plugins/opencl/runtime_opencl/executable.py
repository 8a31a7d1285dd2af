"""A compiled region: one sequence of commands on the device's queue per submission, and one read at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.backend import Buffer, ExecutionFailed, InvalidArgument, Node, Region, RuntimeFault
from runtime_opencl.calls import Call, Copy, Site
from runtime_opencl.checking import Checker
from runtime_opencl.errors import translated
from runtime_opencl.event import CommandEvent, FailedEvent
from runtime_opencl.lowering import LOWER
from runtime_opencl.memory import Allocator, DeviceBuffer, Lifetime, assign_slots, own
from runtime_opencl.programs import Programs

FAULT_WORDS = 4


class Prepared:
    """A command that is ready: a kernel with its arguments, or a copy."""

    def __init__(self, what: str, kernel: Any = None) -> None:
        self.what = what
        self.kernel = kernel
        self.copy: Copy | None = None
        self.num_items: tuple[int, ...] = ()
        self.group: tuple[int, ...] | None = None
        self._arguments: list[Any] = []

    def set(self, call: Call) -> None:
        """Give the kernel its arguments; those that it has already are left alone."""
        self.num_items, self.group = call.num_items, call.group
        for i, argument in enumerate(call.arguments):
            value = argument.memory if isinstance(argument, DeviceBuffer) else argument
            if i < len(self._arguments):
                if self._arguments[i] is value or (isinstance(value, np.generic) and self._arguments[i] == value):
                    continue
                self._arguments[i] = value
            else:
                self._arguments.append(value)
            self.kernel.set_arg(i, value)


class RegionExecutable:
    """The commands of a region; those for the same sizes and buffers as before are submitted as they are.

    Intermediates share buffers by liveness, at the largest sizes of the region. Errors that kernels find in the
    contents of indices come back with the event, in a record of a few words.
    """

    def __init__(
        self,
        region: Region,
        resident: Mapping[str, Buffer],
        queue: Any,
        programs: Programs,
        allocator: Allocator,
        counters: dict[str, int],
    ) -> None:
        self._region = region
        self._queue = queue
        self._programs = programs
        self._counters = counters
        self._resident = {name: own(buffer) for name, buffer in resident.items()}
        self._checker = Checker()
        self._prepared: dict[tuple[object, ...], Prepared] = {}
        self._sequence: list[Prepared] = []
        self._last: tuple[object, ...] | None = None
        self._state_of = {alias.name: state.name for alias, state in region.aliases.items()}
        self._symbols = sorted({d for n in region.nodes for d in _symbols(n)})
        self._owned: list[DeviceBuffer] = []
        self._fault = allocator.allocate(4 * FAULT_WORDS, "a fault record")
        self._owned.append(self._fault)
        try:
            self._pool = self._allocate_pool(allocator)
            self._build_programs()
        except BaseException:
            self.close()
            raise

    @property
    def fingerprint(self) -> str:
        """Identifies kernels and options in reports."""
        ops = ", ".join(dict.fromkeys(n.op.key for n in self._region.nodes))
        return f"opencl lanes={self._programs.num_lanes} group={self._programs.group_size}: {ops}"

    @property
    def pool_bytes(self) -> int:
        """Device memory that intermediates take."""
        return sum(b.nbytes for b in self._owned) - self._fault.nbytes

    def submit(self, bindings: Mapping[str, Buffer], dims: Mapping[str, int]) -> CommandEvent | FailedEvent:
        """Start one run; the event carries its error."""
        try:
            return self._submit(bindings, dims)
        except RuntimeFault as error:
            self._last = None
            return FailedEvent(error)

    def close(self) -> None:
        """Free what was compiled, and the pool; resident buffers belong to the caller."""
        for buffer in self._owned:
            buffer.close()
        self._owned, self._prepared, self._sequence, self._resident = [], {}, [], {}

    def _submit(self, bindings: Mapping[str, Buffer], dims: Mapping[str, int]) -> CommandEvent:
        import pyopencl as cl

        bound = {v.name: own(bindings[v.name]) for v in (*self._region.inputs, *self._region.outputs)}
        key = (*(dims[s] for s in self._symbols), *(id(b.memory) for b in bound.values()))
        if key != self._last:
            self._sequence = self._prepare(bound, dims)
            self._last = key
        record = np.zeros(FAULT_WORDS, np.int32)
        with translated(f"starting {self._region.name}"):
            cl.enqueue_fill_buffer(self._queue, self._fault.memory, np.int32(0), 0, 4 * FAULT_WORDS)
        for command in self._sequence:
            self._enqueue(command)
        with translated(f"ending {self._region.name}"):
            event = cl.enqueue_copy(self._queue, record, self._fault.memory, is_blocking=False)
            self._queue.flush()
        checks = self._checker.checks
        return CommandEvent(event, f"region {self._region.name}", lambda: checks.fault(record), keep=record)

    def _enqueue(self, command: Prepared) -> None:
        import pyopencl as cl

        with translated(command.what):
            if command.copy is not None:
                copy = command.copy
                cl.enqueue_copy(self._queue, copy.target.memory, copy.source.memory, byte_count=copy.nbytes)
            else:
                cl.enqueue_nd_range_kernel(self._queue, command.kernel, command.num_items, command.group)
                self._counters["kernels_run"] += 1

    def _prepare(self, bound: Mapping[str, DeviceBuffer], dims: Mapping[str, int]) -> list[Prepared]:
        """Commands for these sizes: checks of step inputs first, so that a refused step changes no state."""
        self._checker = Checker()  # its messages hold the sizes
        sites = [self._site(node, bound, dims) for node in self._region.nodes]
        seen: set[Any] = set()
        from_outside = {v.name for v in (*self._region.inputs, *self._region.resident)}
        sequence: list[Prepared] = []
        for number, site in enumerate(sites):
            if all(v.name in from_outside for v in site.node.inputs.values() if v.spec.format.name == "i32"):
                sequence += self._commands(("check", number), site, self._checker.calls(site, seen))
        for number, site in enumerate(sites):
            sequence += self._commands(("check", number, "late"), site, self._checker.calls(site, seen))
            sequence += self._commands(("node", number), site, LOWER[site.node.op.key](site))
        return sequence

    def _commands(self, key: tuple[object, ...], site: Site, calls: Sequence[Call | Copy]) -> list[Prepared]:
        commands = []
        for i, call in enumerate(calls):
            if isinstance(call, Copy):
                command = Prepared(f"a copy for node {site.node.name} ({site.node.op.key})")
                command.copy = call
                commands.append(command)
                continue
            if not all(call.num_items):
                continue
            full = (*key, i, call.file, call.kernel, call.definitions)
            command = self._prepared.get(full) or self._make(full, site, call)
            with translated(command.what):
                command.set(call)
            commands.append(command)
        return commands

    def _make(self, key: tuple[object, ...], site: Site, call: Call) -> Prepared:
        kernel = self._programs.kernel(call.file, call.kernel, *call.definitions)
        command = Prepared(f"kernel {call.kernel} of node {site.node.name} ({site.node.op.key})", kernel)
        self._prepared[key] = command
        return command

    def _site(self, node: Node, bound: Mapping[str, DeviceBuffer], dims: Mapping[str, int]) -> Site:
        return Site(
            node=node,
            inputs={port: self._buffer(value.name, bound) for port, value in node.inputs.items()},
            outputs=tuple(self._buffer(value.name, bound) for value in node.outputs),
            dims=dims,
            fault=self._fault,
            num_lanes=self._programs.num_lanes,
            group_size=self._programs.group_size,
        )

    def _buffer(self, name: str, bound: Mapping[str, DeviceBuffer]) -> DeviceBuffer:
        name = name if name in bound else self._state_of.get(name, name)
        for source in (bound, self._pool, self._resident):
            if name in source:
                return source[name]
        raise ExecutionFailed(f"{self._region.name} has no buffer for '{name}'")

    def _build_programs(self) -> None:
        """Build at load what the sizes of the region can ask for, so that a kernel that does not build fails there."""
        for most in (1, 4, None):
            dims = {name: span.hi if most is None else min(span.hi, most) for name, span in self._region.dims.items()}
            sizes = dict.fromkeys(self._symbols, 1) | dims
            for node in self._region.nodes:
                unbound = dict.fromkeys((v.name for v in (*node.inputs.values(), *node.outputs)), self._fault)
                for call in LOWER[node.op.key](self._site(node, unbound, sizes)):
                    if isinstance(call, Call):
                        self._programs.kernel(call.file, call.kernel, *call.definitions)
        self._programs.kernel("checks", "check_range")

    def _allocate_pool(self, allocator: Allocator) -> dict[str, DeviceBuffer]:
        lifetimes = _lifetimes(self._region)
        slots, sizes = assign_slots(lifetimes)
        buffers = [allocator.allocate(size, f"intermediates of {self._region.name}") for size in sizes]
        self._owned += buffers
        return {name: buffers[slot] for name, slot in slots.items()}


def _symbols(node: Node) -> list[str]:
    values = (*node.inputs.values(), *node.outputs)
    return [d for v in values for d in v.spec.shape if isinstance(d, str)]


def _lifetimes(region: Region) -> list[Lifetime]:
    """Intermediates that no one outside sees, at the largest sizes of the region."""
    sizes = {name: span.hi for name, span in region.dims.items()}
    outside = {v.name for v in (*region.inputs, *region.outputs, *region.resident)}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    nbytes: dict[str, int] = {}
    for number, node in enumerate(region.nodes):
        for value in node.inputs.values():
            last[value.name] = number
        for value in node.outputs:
            if value.name in outside or value in region.aliases:
                continue
            missing = [d for d in value.spec.shape if isinstance(d, str) and d not in sizes]
            if missing:
                raise InvalidArgument(f"'{value.name}' is {value.spec}, and dimension {missing[0]} has no range")
            first[value.name] = last[value.name] = number
            nbytes[value.name] = value.spec.nbytes(sizes)
    return [Lifetime(name, nbytes[name], first[name], last[name]) for name in first]
