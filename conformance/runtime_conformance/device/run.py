"""Runs one case on a device: decoy first, then twice with outputs poisoned two ways; inputs must stay as they were."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.backend import Buffer, Device, Rule, RuntimeFault, TensorSpec, Unsupported
from runtime.dtypes import Span, encode
from runtime.graph import expand_composites, make_region
from runtime_conformance.case import Case, build_graph
from runtime_conformance.data import make_data, make_decoy

if TYPE_CHECKING:
    from numpy.typing import NDArray

POISONS = (0xA5, 0x7F)
"""Bytes that outputs hold before the first and the second run; the second is NaN in most formats."""
TIMEOUT_S = 60.0


@dataclass
class Outcome:
    """What happened to a case on the device.

    status    ran, unsupported, refused, accepted (although it had to be refused), failed, vacuous (a law that cannot be
              tested here)
    runs      raw bytes of all outputs, for every run that differs from the first
    faults    what was seen besides the outputs: changed inputs, runs that differ although the order is fixed
    rule      the rule of the manifest that claimed the case
    """

    status: str
    runs: list[list[NDArray[Any]]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    reason: str = ""
    rule: Rule | None = None
    host_ns: int = 0
    kernels_run: int = 0
    seconds: float = 0.0


class Session:
    """One compiled case with its buffers: to be run several times with different contents.

    `hints` go to the device's compiler; with `expand`, a composite is taken apart into a region of several nodes. The
    region allows steps that are `spare` larger in every open dimension, as that of an engine would.
    """

    def __init__(
        self,
        device: Device,
        case: Case,
        stored: Mapping[str, Any],
        *,
        hints: Mapping[str, Any] | None = None,
        expand: bool = False,
        spare: int = 0,
    ) -> None:
        self.device, self.case = device, case
        self.graph, self.node, self.sizes = build_graph(case)
        dims = with_room(self.sizes, spare)
        if expand:
            self.graph = expand_composites(self.graph, keep=lambda node: False)
        self.input_buffers: dict[str, Buffer] = {}
        self.resident: dict[str, Buffer] = {}
        self.outputs: list[tuple[Any, TensorSpec, Buffer]] = []
        import numpy as np

        states = self.graph.state_aliases()
        for name, tensor in case.inputs.items():
            spec = tensor.spec
            if tensor.role == "weight":
                self.resident[name] = self._load(name, spec, stored[name])
            elif tensor.role == "state":
                self.resident[name] = device.allocate(spec)
            else:
                self.input_buffers[name] = device.allocate(spec)
        largest = {name: span.hi for name, span in dims.items()}
        for name, value in self.graph.constants.items():
            assert value.data is not None
            self.resident[name] = self._load(
                name, value.spec, np.frombuffer(encode(value.spec.format, value.data), "u1")
            )
        for value in self.graph.outputs.values():
            spec = TensorSpec(value.spec.format, value.spec.resolve(self.sizes), value.spec.layout)
            room = TensorSpec(value.spec.format, value.spec.resolve(largest), value.spec.layout)
            buffer = self.resident[states[value].name] if value in states else device.allocate(room)
            self.outputs.append((value, spec, buffer))
        outputs = list(self.graph.outputs.values())
        region = make_region("case", list(self.graph.nodes), {**self.graph.dims, **dims}, outputs, states)
        self.executable = device.compile(region, self.resident, hints or {})
        self._states = states

    def _load(self, name: str, spec: TensorSpec, data: Any) -> Buffer:
        view = memoryview(data)
        adopted = self.device.adopt_host(view, spec)
        use = {"name": name, "op": self.case.op, "port": name}
        return self.device.load_weight(spec, view, use) if adopted is None else adopted

    def run(self, stored: Mapping[str, Any], poison: int) -> list[NDArray[Any]]:
        """Upload, poison, run, download: the raw bytes of every output."""
        import numpy as np

        for name, tensor in self.case.inputs.items():
            if tensor.role != "weight":
                target = self.resident[name] if tensor.role == "state" else self.input_buffers[name]
                self.device.upload(target, np.ascontiguousarray(stored[name]).data, tensor.spec).wait(TIMEOUT_S)
        bindings = dict(self.input_buffers)
        for value, spec, buffer in self.outputs:
            if value not in self._states:
                junk = np.full(spec.nbytes(), poison, np.uint8)
                self.device.upload(buffer, junk.data, spec).wait(TIMEOUT_S)
                bindings[value.name] = buffer
        self.executable.submit(bindings, self.sizes).wait(TIMEOUT_S)
        return [self.download(buffer, spec) for _, spec, buffer in self.outputs]

    def changed_inputs(self, stored: Mapping[str, Any]) -> list[str]:
        """Names of step inputs that no longer hold what was uploaded."""
        import numpy as np

        changed = []
        for name, buffer in self.input_buffers.items():
            if not np.array_equal(self.download(buffer, self.case.inputs[name].spec), stored[name]):
                changed.append(name)
        return changed

    def download(self, buffer: Buffer, spec: TensorSpec) -> NDArray[Any]:
        """The raw bytes of a buffer."""
        import numpy as np

        data = np.empty(spec.nbytes(), np.uint8)
        self.device.download(buffer, data.data, spec).wait(TIMEOUT_S)
        return data

    def close(self) -> None:
        """Free everything."""
        self.executable.close()
        for buffer in (*self.input_buffers.values(), *self.resident.values(), *(b for _, _, b in self.outputs)):
            buffer.close()


def with_room(sizes: Mapping[str, int], spare: int) -> dict[str, Span]:
    """Ranges of the open dimensions of a region that also takes steps `spare` larger; without, of this very step."""
    return {name: Span(1 if spare else size, size + spare) for name, size in sizes.items()}


def match(device: Device, case: Case) -> tuple[Rule | None, tuple[str, ...]]:
    """The rule that claims the whole case, or the reasons why there is none."""
    graph, node, _ = build_graph(case)
    found = device.manifest.match(case.op, node.facts(graph.dims))
    return (found.rule, ()) if found.coverage == "full" else (None, found.reasons)


def run_case(device: Device, case: Case, seed: int) -> Outcome:
    """Run `case` as it expects to be run; errors of the device become the outcome."""
    rule, reasons = match(device, case)
    if case.expect == "outside":
        return _run_outside(device, case, seed)
    if rule is None:
        return Outcome("unsupported", reason="; ".join(reasons))
    started = time.perf_counter()
    try:
        outcome = _run_refused(device, case, seed) if case.expect == "refuse" else _run(device, case, seed, rule)
    except Unsupported as error:
        outcome = Outcome("failed", reason=f"the manifest claims it, the device refuses: {error}")
    except RuntimeFault as error:
        outcome = Outcome("failed", reason=f"{type(error).__name__}: {error}")
    outcome.rule = rule
    outcome.seconds = time.perf_counter() - started
    return outcome


def _run(device: Device, case: Case, seed: int, rule: Rule) -> Outcome:
    stored = make_data(case, seed)
    session = Session(device, case, stored)
    try:
        before = device.counters()
        session.run(make_decoy(case, stored), POISONS[0])
        runs = [session.run(stored, poison) for poison in POISONS]
        after = device.counters()
        faults = [f"input '{name}' was overwritten" for name in session.changed_inputs(stored)]
    finally:
        session.close()
    if not same(runs[0], runs[1]):
        if rule.numerics.order == "fixed" or "deterministic" in rule.flags:
            faults.append("two runs differ, although the order of summation is declared fixed")
    else:
        runs.pop()
    return Outcome(
        "ran",
        runs,
        faults,
        host_ns=after.get("host_compute_ns", 0) - before.get("host_compute_ns", 0),
        kernels_run=after.get("kernels_run", 0) - before.get("kernels_run", 0),
    )


def _run_refused(device: Device, case: Case, seed: int) -> Outcome:
    stored = make_data(case, seed)
    session = Session(device, case, stored)
    try:
        session.run(stored, POISONS[0])
    except RuntimeFault as error:
        return Outcome("refused", reason=str(error))
    finally:
        session.close()
    return Outcome("accepted", reason=f"contents that break a rule ({case.note}) gave a result instead of an error")


def _run_outside(device: Device, case: Case, seed: int) -> Outcome:
    stored = make_data(case, seed)
    try:
        Session(device, case, stored).close()
    except RuntimeFault as error:
        return Outcome("refused", reason=str(error))
    return Outcome("accepted", reason=f"the manifest excludes {case.note.partition(',')[0]}, compiling it succeeded")


def same(a: list[NDArray[Any]], b: list[NDArray[Any]]) -> bool:
    """Whether two runs gave the same bytes."""
    import numpy as np

    return all(np.array_equal(x, y) for x, y in zip(a, b))


def decode_outputs(case: Case, raw: list[NDArray[Any]], specs: tuple[TensorSpec, ...]) -> list[Any]:
    """Raw outputs as the judge takes them: float64, int64, or the bytes of encoded rows."""
    import numpy as np

    made = []
    for data, spec in zip(raw, specs):
        shape = spec.resolve({})
        if spec.format.is_quantized and spec.layout == "plain":
            made.append(np.array(data).reshape(*shape[:-1], -1))
            continue
        values = spec.format.decode(np.ascontiguousarray(data), shape)
        made.append(values.astype(np.float64 if values.dtype.kind == "f" else np.int64))
    return made
