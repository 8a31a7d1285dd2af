"""Runs a plan: loads weights, allocates states, compiles regions, and moves every step through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from runtime.backend import Buffer, Device, Event, Executable, ReferenceDevice, WeightSlot
from runtime.dtypes import TensorSpec, encode
from runtime.errors import InvalidArgument
from runtime.executor.boundary import BoundaryBuffers
from runtime.executor.exchange import KeptOutput, as_memory, empty_memory, from_memory, resolved
from runtime.executor.loading import Progress, WeightSource, first_uses, load_constant, load_weight
from runtime.executor.memory import largest
from runtime.executor.plan import Plan
from runtime.executor.regions import Transfer
from runtime.graph import Value

if TYPE_CHECKING:
    from numpy.typing import NDArray

WeightSlots = Callable[[Device, str], WeightSlot | None]
COUNTERS = ("kernels_run", "bytes_uploaded", "bytes_downloaded", "host_compute_ns")


class Executor:
    """A plan on open devices.

    plan        see `make_plan`
    devices     name -> open device, at least those that the plan names; they stay open when the executor is closed.
                A missing host device is opened, and closed, by the executor.
    weights     name -> (spec, bytes) of a stored weight; its memory must stay valid until `close`
    state_dims  values of the symbolic dimensions of states, e.g. {"B": number of KV blocks}
    progress    called with (bytes done, bytes in all) while weights are loaded
    shared      an executor on the same devices whose weights, constants and states of equal name and place are used
                instead of own ones; it must stay open as long as this one
    slots       (device, name) -> the weight's place in a cache, or None

    Work that is submitted to one device runs in the order of submission. A failed run leaves states undefined where
    the failed region writes them; everything else stays usable.
    """

    def __init__(
        self,
        plan: Plan,
        devices: Mapping[str, Device],
        weights: WeightSource | None = None,
        state_dims: Mapping[str, int] | None = None,
        progress: Progress | None = None,
        shared: Executor | None = None,
        slots: WeightSlots | None = None,
    ) -> None:
        self.plan = plan
        self._shared = {} if shared is None else shared._resident
        self._loaded: list[Buffer] = []
        self._state_dims = dict(state_dims or {})
        self._devices: dict[str, Device] = {}
        self._owned: list[Device] = []
        self._resident: dict[str, dict[str, Buffer]] = {}
        self._executables: list[Executable] = []
        self._boundary: BoundaryBuffers | None = None
        self._counters = dict.fromkeys(("run_ns", *COUNTERS), 0)
        self._before: dict[int, list[Transfer]] = {}
        self._homes = {v: placed.device for placed in plan.regions for v in placed.region.outputs}
        for transfer in plan.transfers:
            self._before.setdefault(transfer.before_region, []).append(transfer)
        try:
            self._open(devices)
            self._load(weights, progress, slots)
            self._compile()
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Mapping[str, NDArray[Any] | KeptOutput], dims: Mapping[str, int]) -> dict[str, NDArray[Any]]:
        """Run one step.

        inputs  name -> array for every input of the graph, with its shape at `dims`, or what another run kept
        dims    value of every symbolic dimension that is not in `state_dims`
        returns name -> new array for every output of the graph

        Raises InvalidArgument before anything runs, and whatever error the events of the step carry.
        """
        outputs, _ = self.run_keeping((), inputs, dims)
        return outputs

    def run_keeping(
        self, keep: Collection[str], inputs: Mapping[str, NDArray[Any] | KeptOutput], dims: Mapping[str, int]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, KeptOutput]]:
        """As `run`; the outputs that `keep` names are not fetched: they stay where they are until the next run."""
        sizes = self._sizes(dims)
        stored = self._check_inputs(inputs, sizes)
        before = self._device_counters()
        started = time.perf_counter_ns()
        try:
            self._submit(stored, sizes)
            wanted = self.plan.graph.outputs
            fetched = {name: self._result(v, stored, sizes) for name, v in wanted.items() if name not in keep}
            return fetched, {name: self._kept(wanted[name], sizes) for name in keep}
        finally:
            self._counters["run_ns"] += time.perf_counter_ns() - started
            for name, count in self._device_counters().items():
                self._counters[name] += count - before[name]

    def counters(self) -> dict[str, int]:
        """run_ns, and of all devices during runs: kernels_run, bytes_uploaded, bytes_downloaded, host_compute_ns."""
        return dict(self._counters)

    def state(self, name: str) -> tuple[str, Buffer, TensorSpec]:
        """Where a state lies: name of its device, its buffer there, and its spec with sizes."""
        value = self.plan.graph.states.get(name)
        device = next((d for d, buffers in self._resident.items() if value is not None and name in buffers), None)
        if value is None or device is None:
            raise InvalidArgument(f"{self.plan.graph.name} has no state '{name}': {', '.join(self.plan.graph.states)}")
        return device, self._resident[device][name], resolved(value.spec, self._state_dims, name)

    @property
    def host_share(self) -> float:
        """Part of the time of all runs that was computation on the host, 0 to 1."""
        run_ns = self._counters["run_ns"]
        return self._counters["host_compute_ns"] / run_ns if run_ns else 0.0

    def close(self) -> None:
        """Free executables, buffers, and devices that the executor opened; closing twice is harmless."""
        for executable in self._executables:
            executable.close()
        for buffer in self._loaded:
            buffer.close()
        if self._boundary is not None:
            self._boundary.close()
        for device in self._owned:
            device.close()
        self._executables, self._resident, self._loaded, self._boundary, self._owned = [], {}, [], None, []

    def _open(self, devices: Mapping[str, Device]) -> None:
        for name in self.plan.devices:
            if name in devices:
                self._devices[name] = devices[name]
            elif name == self.plan.host:
                self._devices[name] = ReferenceDevice(name=name)
                self._owned.append(self._devices[name])
            else:
                raise InvalidArgument(
                    f"the plan of {self.plan.graph.name} uses device '{name}', which is not open; "
                    f"open: {', '.join(devices) or 'none'}"
                )

    def _load(
        self,
        weights: WeightSource | None,
        progress: Progress | None,
        slots: WeightSlots | None,
    ) -> None:
        plan = self.plan
        wanted: dict[str, dict[Value, None]] = {name: {} for name in plan.devices}
        for placed in plan.regions:
            wanted[placed.device].update(dict.fromkeys(placed.region.resident))
        uses = first_uses([placed.region for placed in plan.regions])
        total = sum(v.spec.nbytes() for values in wanted.values() for v in values if v.kind == "weight")
        done = 0
        for name, values in wanted.items():
            device, buffers = self._devices[name], self._resident.setdefault(name, {})
            for value in values:
                known = self._shared.get(name, {}).get(value.name)
                if known is not None:
                    buffers[value.name] = known
                    continue
                if value.kind == "state":
                    buffers[value.name] = device.allocate(resolved(value.spec, self._state_dims, value.name))
                elif value.kind == "constant":
                    buffers[value.name] = load_constant(device, value)
                else:
                    if weights is None:
                        raise InvalidArgument(f"graph {plan.graph.name} has weights, and no source of weights is given")
                    stored = plan.placements.converted.get(value.name, value.name)
                    use: dict[str, Any] = dict(uses[value])
                    slot = None if slots is None else slots(device, value.name)
                    if slot is not None:
                        use["slot"] = slot
                    buffers[value.name] = load_weight(device, value, weights, stored, use)
                    done += value.spec.nbytes()
                    if progress is not None:
                        progress(done, total)
                self._loaded.append(buffers[value.name])

    def _compile(self) -> None:
        sizes = largest(self.plan.graph.dims) | self._state_dims
        self._boundary = BoundaryBuffers(self.plan, self._devices, sizes)
        for placed in self.plan.regions:
            resident = {v.name: self._resident[placed.device][v.name] for v in placed.region.resident}
            arena = self.plan.memory[placed.device].arena
            hints = {"arena_offsets": arena.offsets, "arena_bytes": arena.peak_bytes}
            self._executables.append(self._devices[placed.device].compile(placed.region, resident, hints))

    def _sizes(self, dims: Mapping[str, int]) -> dict[str, int]:
        sizes = self._state_dims | dict(dims)
        for name, span in self.plan.graph.dims.items():
            if name not in sizes:
                raise InvalidArgument(f"a run of {self.plan.graph.name} needs a value for dimension '{name}' ({span})")
            size = sizes[name]
            if not span.lo <= size <= span.hi or (size - span.lo) % span.step:
                raise InvalidArgument(
                    f"dimension {name} = {size} is outside the plan of {self.plan.graph.name}: {span}"
                )
        return sizes

    def _check_inputs(
        self, inputs: Mapping[str, NDArray[Any] | KeptOutput], sizes: Mapping[str, int]
    ) -> dict[Value, memoryview | KeptOutput]:
        wanted = self.plan.graph.inputs
        unknown = [name for name in inputs if name not in wanted]
        missing = [name for name in wanted if name not in inputs]
        if unknown or missing:
            raise InvalidArgument(
                f"a run of {self.plan.graph.name} takes {', '.join(wanted)}; "
                f"missing: {', '.join(missing) or 'none'}, unknown: {', '.join(unknown) or 'none'}"
            )
        stored: dict[Value, memoryview | KeptOutput] = {}
        for name, value in wanted.items():
            given, spec = inputs[name], resolved(value.spec, sizes, name)
            if not isinstance(given, KeptOutput):
                stored[value] = as_memory(name, spec, given)
            elif (given.spec.format.name, given.spec.shape) == (spec.format.name, spec.shape):
                stored[value] = given
            else:
                raise InvalidArgument(f"input '{name}' is {given.spec}, the step needs {spec}")
        return stored

    def _submit(self, stored: Mapping[Value, memoryview | KeptOutput], sizes: Mapping[str, int]) -> None:
        assert self._boundary is not None, "the executor is closed"
        pending: dict[str, list[Event]] = {name: [] for name in self._devices}
        for number, (placed, executable) in enumerate(zip(self.plan.regions, self._executables, strict=True)):
            for transfer in self._before.get(number, ()):
                if transfer.source is not None:
                    _finish(pending[transfer.source])
                event = self._transfer(transfer, stored, sizes)
                pending[placed.device].append(event)
            bindings = self._boundary.of_region(number)
            pending[placed.device].append(executable.submit(bindings, sizes))
        for events in pending.values():
            _finish(events)

    def _transfer(
        self, transfer: Transfer, stored: Mapping[Value, memoryview | KeptOutput], sizes: Mapping[str, int]
    ) -> Event:
        assert self._boundary is not None
        value = transfer.value
        spec = resolved(value.spec, sizes, value.name)
        device, target = self._devices[transfer.target], self._boundary.buffer(value, transfer.target)
        data = stored.get(value)
        if transfer.source is not None:
            data = self._download(transfer.source, self._boundary.buffer(value, transfer.source), spec)
        assert data is not None
        if isinstance(data, KeptOutput):
            if data.device is device:
                return device.copy(target, data.buffer, spec)
            data = data.memory()
        return device.upload(target, data, spec)

    def _download(self, device: str, buffer: Buffer, spec: TensorSpec) -> memoryview:
        data = empty_memory(spec)
        self._devices[device].download(buffer, data, spec).wait()
        return data

    def _kept(self, value: Value, sizes: Mapping[str, int]) -> KeptOutput:
        if value not in self._homes:
            raise InvalidArgument(
                f"'{value.name}' is computed by no region of {self.plan.graph.name}: it cannot be kept"
            )
        assert self._boundary is not None
        home = self._homes[value]
        spec = resolved(value.spec, sizes, value.name)
        return KeptOutput(self._devices[home], self._boundary.buffer(value, home), spec)

    def _result(
        self, value: Value, stored: Mapping[Value, memoryview | KeptOutput], sizes: Mapping[str, int]
    ) -> NDArray[Any]:
        assert self._boundary is not None
        spec = resolved(value.spec, sizes, value.name)
        if value in stored:
            given = stored[value]
            return given.numpy() if isinstance(given, KeptOutput) else from_memory(spec, memoryview(bytearray(given)))
        if value.data is not None:
            return from_memory(spec, memoryview(bytearray(encode(spec.format, value.data))))
        state = self.plan.graph.state_aliases().get(value)
        if state is not None:
            device = next(p.device for p in self.plan.regions if state in p.region.resident)
            return from_memory(spec, self._download(device, self._resident[device][state.name], spec))
        device = self._homes[value]
        return from_memory(spec, self._download(device, self._boundary.buffer(value, device), spec))

    def _device_counters(self) -> dict[str, int]:
        totals = dict.fromkeys(COUNTERS, 0)
        for device in self._devices.values():
            counters = device.counters()
            for name in COUNTERS:
                totals[name] += counters.get(name, 0)
        return totals


def _finish(events: list[Event]) -> None:
    """Wait for all, raising the first error; the list is empty afterwards."""
    waiting: Iterable[Event] = list(events)
    events.clear()
    for event in waiting:
        event.wait()
