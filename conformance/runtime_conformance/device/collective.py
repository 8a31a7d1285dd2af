"""L3 on one rank: what a worker does when the suite runs a group of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.backend import Buffer, CollectiveFailed, Communicator, Device, RuntimeFault, TensorSpec, TimedOut
from runtime.dtypes import FORMATS
from runtime_conformance.case import Case, Tensor, output_specs
from runtime_conformance.data import Stream, make_data
from runtime_conformance.device.laws import NotEvaluable
from runtime_conformance.device.run import POISONS, TIMEOUT_S, Session, match

FAIL_WITHIN_S = 45.0
"""A peer that died or never came must be known by then: more than the 30 s that a careful transport allows itself."""
ABORT_WITHIN_S = 5.0
"""Nobody has to be waited for."""
_CALLS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send", "recv")


def collective_case(op: str, world: int, fmt: str, kind: str) -> Case:
    """The collective over all ranks at once, along the outermost dimension: what the oracle computes."""
    data = ("integers",) if kind == "exact" else ("normal",)
    inputs = {f"x{rank}": Tensor(fmt, (12, 40), data=data) for rank in range(world)}
    attrs: dict[str, Any] = {}
    if op in ("all_gather", "reduce_scatter", "all_to_all"):
        attrs["axis"] = 0
    elif op == "broadcast":
        attrs["root"] = world - 1
    elif op in ("send", "recv"):
        attrs |= {"src": world - 1, "dst": 0}
    sums = op in ("all_reduce", "reduce_scatter")
    return Case(f"{op}@1", inputs, attrs, kind if sums else "exact")


def run_rank(device: Device, header: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Do what `header["name"]` says as rank `header["rank"]` of `header["group"]`; times are the rank's own.

    Raises NotEvaluable where the device has no collectives.
    """
    communicator = device.communicator(header["group"], header["rank"])
    if communicator is None:
        raise NotEvaluable("the device has no communicator")
    rank = Rank(device, communicator, header)
    _KEPT[id(device)] = communicator  # a rank dies with its process, not when this function returns
    started = time.perf_counter()
    made = _DEEDS[header["name"].partition("[")[0]](rank)
    return {"seconds": time.perf_counter() - started, "failure": rank.failure}, made


_KEPT: dict[int, Communicator] = {}


class Rank:
    """One rank of a group with its device."""

    def __init__(self, device: Device, communicator: Communicator, header: Mapping[str, Any]) -> None:
        self.device, self.communicator = device, communicator
        self.rank, self.world = header["rank"], len(header["group"])
        self.case = Case.from_json(header["case"])
        self.seed: int = header["seed"]
        self.fail_within_s: float = header.get("fail_within_s", FAIL_WITHIN_S)
        self.failure = (
            ""
            if (communicator.rank, communicator.world_size) == (self.rank, self.world)
            else (f"rank {self.rank} of {self.world} says that it is {communicator.rank} of {communicator.world_size}")
        )

    def buffer(self, spec: TensorSpec, data: Any) -> Buffer:
        """Device memory with contents."""
        import numpy as np

        made = self.device.allocate(spec)
        self.device.upload(made, np.ascontiguousarray(data).data, spec).wait(TIMEOUT_S)
        return made

    def read(self, buffer: Buffer, spec: TensorSpec) -> Any:
        """Its contents, and the end of it."""
        import numpy as np

        data = np.empty(spec.nbytes(), np.uint8)
        self.device.download(buffer, data.data, spec).wait(TIMEOUT_S)
        buffer.close()
        return data

    def call(self, case: Case, seed: int) -> Any:
        """One collective of the kind of `case`; returns what this rank has afterwards."""
        import numpy as np

        name, spec = case.op.partition("@")[0], case.inputs[f"x{self.rank}"].spec
        own = make_data(case, seed)[f"x{self.rank}"]
        source = self.buffer(spec, own)
        made = output_specs(case)[self.rank]
        calls = self.communicator
        if name in ("all_gather", "reduce_scatter", "all_to_all"):
            target = self.buffer(made, np.full(made.nbytes(), POISONS[1], np.uint8))
            getattr(calls, name)(target, source, spec).wait(self.fail_within_s)
            source.close()
            return self.read(target, made)
        if name == "all_reduce":
            calls.all_reduce(source, spec).wait(self.fail_within_s)
        elif name == "broadcast":
            calls.broadcast(source, spec, case.attrs["root"]).wait(self.fail_within_s)
        elif self.rank == case.attrs["src"]:
            calls.send(source, spec, case.attrs["dst"]).wait(self.fail_within_s)
        elif self.rank == case.attrs["dst"]:
            calls.recv(source, spec, case.attrs["src"]).wait(self.fail_within_s)
        return self.read(source, spec)


def _one(rank: Rank) -> list[Any]:
    return [rank.call(rank.case, rank.seed)]


def _many(rank: Rank) -> list[Any]:
    """Other contents first, and other collectives: whoever mixes up two of them is wrong at the end."""
    for i in range(6):
        rank.call(rank.case, rank.seed + 1 + i)
        rank.call(collective_case(_CALLS[i], rank.world, "f32", "exact"), rank.seed + i)
    return _one(rank)


def _meet(rank: Rank) -> list[Any]:
    """All ranks meet once; those that are left try again when one has been killed."""
    return _one(rank)


def _fails(rank: Rank, call: Callable[[], Any], what: str, *wanted: type[RuntimeFault]) -> list[Any]:
    try:
        call()
    except TimedOut as error:
        rank.failure = rank.failure or f"{what}: not known in time: {error}"
    except wanted:
        return []
    except RuntimeFault as error:
        rank.failure = rank.failure or f"{what}: {type(error).__name__} instead of CollectiveFailed: {error}"
    else:
        rank.failure = rank.failure or f"{what}: the collective succeeded"
    return []


def _bereft(rank: Rank) -> list[Any]:
    """The last rank is dead."""
    rank.call(rank.case, rank.seed)
    if rank.rank == rank.world - 1:
        return []
    return _fails(rank, lambda: rank.call(rank.case, rank.seed + 1), "a peer is dead", CollectiveFailed)


def _aborted(rank: Rank) -> list[Any]:
    """Rank 0 waits for the others, who never come, and aborts."""
    spec = rank.case.inputs["x0"].spec
    buffer = rank.buffer(spec, make_data(rank.case, rank.seed)["x0"])
    if rank.rank:
        return []
    event = rank.communicator.all_reduce(buffer, spec)
    time.sleep(0.1)
    rank.communicator.abort()
    return _fails(rank, lambda: event.wait(ABORT_WITHIN_S), "abort was called", CollectiveFailed)


def _mismatched(rank: Rank) -> list[Any]:
    """The last rank has fewer rows."""
    spec = rank.case.inputs["x0"].spec
    if rank.rank == rank.world - 1:
        spec = TensorSpec(spec.format, (spec.resolve({})[0] - 1, *spec.shape[1:]))
    buffer = rank.buffer(spec, Stream("mismatch").bytes(spec.nbytes()) & 0x3F)
    call = rank.communicator.all_reduce
    return _fails(rank, lambda: call(buffer, spec).wait(rank.fail_within_s), "shapes differ", RuntimeFault)


def _parallel(rank: Rank) -> list[Any]:
    """A feed-forward network of which every rank has a part: the partial results are summed."""
    case, stored = rank.case, make_data(rank.case, rank.seed)
    part, data = shard(case, stored, rank.rank, rank.world)
    rule, reasons = match(rank.device, Case("linear@1", {n: part.inputs[p] for n, p in _PRODUCT.items()}))
    if rule is None:
        raise NotEvaluable(f"the device does not claim the products of {case.op}: {'; '.join(reasons)}")
    session = Session(rank.device, part, data, expand=True)
    try:
        session.run(data, POISONS[0])
        (_, spec, buffer), *_ = session.outputs
        rank.communicator.all_reduce(buffer, spec).wait(rank.fail_within_s)
        return [session.download(buffer, spec)]
    finally:
        session.close()


_PRODUCT = {"x": "x", "weight": "gate_weight"}


def shard(case: Case, stored: Mapping[str, Any], rank: int, world: int) -> tuple[Case, dict[str, Any]]:
    """The part of a swiglu_ffn of `rank`: rows of gate and up, columns of down; float32 weights."""
    import numpy as np

    inputs, data = dict(case.inputs), dict(stored)
    width = case.inputs["gate_weight"].shape[0]
    own = slice(rank * width // world, (rank + 1) * width // world)
    for name in ("gate_weight", "up_weight", "down_weight"):
        tensor = case.inputs[name]
        values = stored[name].view("<f4").reshape(tensor.shape)
        values = np.ascontiguousarray(values[:, own] if name == "down_weight" else values[own])
        inputs[name] = Tensor("f32", values.shape, tensor.role, tensor.data)
        data[name] = values.reshape(-1).view(np.uint8)
    return case.but(inputs=inputs), data


def parallel_case() -> Case:
    """What one device computes alone."""
    widths = {"gate_weight": (512, 256), "up_weight": (512, 256), "down_weight": (256, 512)}
    inputs = {"x": Tensor("f32", (5, 256))}
    inputs |= {n: Tensor("f32", shape, "weight", ("normal", 0.05)) for n, shape in widths.items()}
    return Case("swiglu_ffn@1", inputs, {"kind": "silu"})


_DEEDS: dict[str, Callable[[Rank], list[Any]]] = {
    **dict.fromkeys(_CALLS, _one),
    "many_in_a_row": _many,
    "a_dead_peer_is_noticed": _bereft,
    "abort_ends_what_is_pending": _aborted,
    "other_shapes_are_refused": _mismatched,
    "a_new_group_works_afterwards": _one,
    "tensor_parallel_2_equals_1": _parallel,
}
_JUDGED = (*_CALLS, "many_in_a_row", "a_new_group_works_afterwards", "tensor_parallel_2_equals_1")


def is_judged(name: str) -> bool:
    """Whether the ranks' outputs go before the judge."""
    return name.partition("[")[0] in _JUDGED


def plan(formats: Sequence[str]) -> dict[str, tuple[Case, int]]:
    """Name -> case and number of ranks, in the order in which they are run; `formats` of activations."""
    steps: dict[str, tuple[Case, int]] = {}
    for op in _CALLS:
        for world in (2, 3):
            for kind in ("normal", "exact") if op in ("all_reduce", "reduce_scatter") else ("exact",):
                fmt = formats[len(steps) % len(formats)] if world == 3 else "f32"
                steps[f"{op}[{fmt}, {world} ranks, {kind}]"] = (collective_case(op, world, fmt, kind), world)
    plain = collective_case("all_reduce", 3, "f32", "normal")
    steps["many_in_a_row"] = (plain, 3)
    steps["tensor_parallel_2_equals_1"] = (parallel_case(), 2)
    steps["other_shapes_are_refused"] = (plain, 3)
    steps["abort_ends_what_is_pending"] = (plain, 3)
    steps["a_dead_peer_is_noticed"] = (plain, 3)
    steps["a_new_group_works_afterwards"] = (plain, 3)
    return {name: step for name, step in steps.items() if all(t.format in FORMATS for t in step[0].inputs.values())}
