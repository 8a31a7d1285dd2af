"""Laws: relations between runs of one device, with no oracle and no tolerance.

A law makes a second question out of the case whose answer must be the same bytes as parts of the first answer; where
a device may legally round differently, the second answer goes before the judge instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from runtime.backend import Device, Manifest, Rule, RuntimeFault
from runtime.errors import InvalidArgument
from runtime.ops import CATALOGUE
from runtime_conformance.case import Case, Tensor, output_specs
from runtime_conformance.cases.covering import covering_rows
from runtime_conformance.cases.space import Space
from runtime_conformance.data import make_data
from runtime_conformance.device.run import POISONS, Outcome, Session, match

Stored = dict[str, Any]
Answer = list[Any]


@dataclass(frozen=True)
class Law:
    """A relation.

    applies   case -> whether it can be tested there
    test      (runner, case, its data) -> what is broken, and outputs of another way to the same result, for the judge
    is_strict whether the bytes must agree: then the relation holds for every device that is right
    """

    name: str
    applies: Callable[[Case], bool]
    test: Callable[[Runner, Case, Stored], tuple[list[str], list[Answer]]]


class Runner:
    """Runs variants of a case on the device, each compiled anew."""

    def __init__(self, device: Device, rule: Rule) -> None:
        self.device, self.rule = device, rule

    @property
    def is_batch_invariant(self) -> bool:
        """Whether the same bits are promised alone and in a batch."""
        return "batch_invariant" in self.rule.flags

    def run(self, case: Case, stored: Mapping[str, Any]) -> Answer:
        """Decoded bytes of every output."""
        session = Session(self.device, case, stored)
        try:
            return [_shaped(y, spec) for y, spec in zip(session.run(stored, POISONS[0]), output_specs(case))]
        finally:
            session.close()

    def can(self, case: Case) -> bool:
        """Whether the device claims the variant too."""
        return match(self.device, case)[0] is not None


def _shaped(raw: Any, spec: Any) -> Any:
    """Bytes with the outer dimensions of the tensor, so that rows can be picked."""
    shape = spec.resolve({})
    return raw.reshape(shape[0], -1) if shape else raw


def _row_inputs(case: Case) -> list[str]:
    from runtime.ops.shapes import port_of

    names = []
    for name in case.inputs:
        port = port_of(case.declaration, name)
        if port is not None and port.shape[:1] in (("T",), ("R",)):
            names.append(name)
    return names


def with_rows(case: Case, stored: Stored, rows: list[int]) -> tuple[Case, Stored]:
    """The case on some of its rows, in the given order."""
    inputs, data = dict(case.inputs), dict(stored)
    for name in _row_inputs(case):
        tensor = case.inputs[name]
        data[name] = stored[name].reshape(tensor.shape[0], -1)[rows].reshape(-1)
        inputs[name] = Tensor(tensor.format, (len(rows), *tensor.shape[1:]), tensor.role, tensor.data, tensor.layout)
    return case.but(inputs=inputs), data


def _num_rows(case: Case) -> int:
    names = _row_inputs(case)
    return case.inputs[names[0]].shape[0] if names else 0


def _row_independent(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    """Each row alone: the same bits where batch invariance is declared, otherwise the judge looks at them."""
    import numpy as np

    whole = runner.run(case, stored)
    parts = []
    for row in range(_num_rows(case)):
        alone, data = with_rows(case, stored, [row])
        if not runner.can(alone):
            return [], []
        parts.append(runner.run(alone, data))
    joined = [np.concatenate([p[i] for p in parts]) for i in range(len(whole))]
    if runner.is_batch_invariant and not all(np.array_equal(a, b) for a, b in zip(whole, joined)):
        return ["rows computed alone differ from the same rows in a batch, although batch_invariant is declared"], []
    return [], [joined]


def _reordered(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    """Rows in reverse order give the answers in reverse order."""
    import numpy as np

    order = list(range(_num_rows(case)))[::-1]
    turned, data = with_rows(case, stored, order)
    back = [np.ascontiguousarray(y[order]) for y in runner.run(turned, data)]
    return [], [back]


def _commutative(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    import numpy as np

    swapped = {**stored, "a": stored["b"], "b": stored["a"]}
    if not all(np.array_equal(x, y) for x, y in zip(runner.run(case, stored), runner.run(case, swapped))):
        return ["a and b exchanged give another result"], []
    return [], []


def _identity_gather(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    import numpy as np

    count = case.inputs["x"].shape[0]
    rows = Tensor("i32", (count,), data=("values", *range(count)))
    variant = case.but(inputs={**case.inputs, "rows": rows})
    y = runner.run(variant, {**stored, "rows": np.arange(count, dtype="<i4").view(np.uint8)})[0]
    return ([] if np.array_equal(y.reshape(-1), stored["x"]) else ["all rows in order are not the input"]), []


def _equal_rows(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    import numpy as np

    count = case.inputs["token_ids"].shape[0]
    y = runner.run(case, {**stored, "token_ids": np.full(count, 3, "<i4").view(np.uint8)})[0]
    return ([] if all(np.array_equal(row, y[0]) for row in y) else ["equal tokens give different rows"]), []


def _idempotent(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    import numpy as np

    once = runner.run(case, stored)[0]
    fmt = case.attrs["format"]
    again = case.but(inputs={"x": Tensor(fmt, case.inputs["x"].shape)})
    if not runner.can(again):
        return [], []
    twice = runner.run(again, {"x": np.ascontiguousarray(once).reshape(-1)})[0]
    return ([] if np.array_equal(once, twice) else ["a second conversion changes the result"]), []


def _position_zero(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    import numpy as np

    y = runner.run(case, {**stored, "positions": np.zeros(case.inputs["positions"].shape[0], "<i4").view(np.uint8)})[0]
    numerics = runner.rule.numerics
    is_plain = {case.inputs["x"].format, numerics.activation, numerics.output} <= {"f32", "f64"}
    if is_plain and not np.array_equal(y.reshape(-1), stored["x"]):
        return ["a rotation at position 0 changes its input"], []
    return [], []


def _untouched(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    """Writing nothing (all slots -1, or no block) leaves every byte of the cache."""
    import numpy as np

    count = case.inputs["slot_mapping"].shape[0]
    y = runner.run(case, {**stored, "slot_mapping": np.full(count, -1, "<i4").view(np.uint8)})[0]
    if case.inputs["kv"].format != "q8_0" and not np.array_equal(y.reshape(-1), stored["kv"]):
        return ["slots of -1 must write nothing, the cache has changed"], []
    return [], []


def _sorted_first(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    """The first of topk is argmax; the lower index among equals."""
    import numpy as np

    other = Case("argmax@1", {"x": case.inputs["x"]}, {}, case.kind)
    if not runner.can(other):
        return [], []
    indices = runner.run(case, stored)[1].reshape(case.inputs["x"].shape[0], -1)[:, :4].copy().view("<i4").reshape(-1)
    largest = runner.run(other, stored)[0].reshape(-1).view("<i4")
    return ([] if np.array_equal(indices, largest) else ["the first of topk is not argmax"]), []


LAWS: dict[str, Law] = {}


def _add(name: str, applies: Callable[[Case], bool], test: Any) -> None:
    LAWS[name] = Law(name, applies, test)


_add("row_independent", lambda c: 2 <= _num_rows(c) <= 40 and c.declaration.family != "composite", _row_independent)
_add("rows_may_be_reordered", lambda c: _num_rows(c) >= 2 and c.declaration.family != "composite", _reordered)
_add("commutative", lambda c: "b" in c.inputs and c.inputs["a"].format == c.inputs["b"].format, _commutative)
_add("all_rows_in_order_is_identity", lambda c: True, _identity_gather)
_add("repeated_tokens_give_equal_rows", lambda c: c.inputs["token_ids"].shape[0] > 1, _equal_rows)
_add("idempotent", lambda c: True, _idempotent)
_add("position_zero_is_identity", lambda c: c.attrs.get("scale", 1.0) == 1.0, _position_zero)
_add("untouched_slots_keep_their_bytes", lambda c: c.op == "kv_write@1", _untouched)
_add("first_is_argmax", lambda c: True, _sorted_first)


def laws_of(op_key: str) -> list[str]:
    """Names of the laws that are tested for an operation."""
    from runtime_conformance.device import paging_laws, row_laws  # each registers its own

    assert paging_laws.__doc__
    assert row_laws.__doc__
    declared = CATALOGUE[op_key].laws
    names = [n for n in declared if n in LAWS]
    if "row_independent" in declared:
        names.append("rows_may_be_reordered")
    if op_key == "attention@1":
        names.append("unused_table_entries_leave_no_trace")
    return names


def law_cases(space: Space, manifest: Manifest, limit: int) -> Iterator[Case]:
    """For every law of the operation, the first cases of its covering array to which it applies."""
    per_law = 1 if limit <= 4 else 3
    for name in laws_of(space.op):
        found = 0
        rows = covering_rows(space.op, space.domains, lambda r: space.build(r) is not None)
        for row in islice(rows, 80):
            case = space.build(row)
            if case is None or case.kind in ("nonfinite", "denormal", "wide", "ties") or not LAWS[name].applies(case):
                continue
            try:
                from runtime_conformance.case import facts

                if manifest.match(case.op, facts(case)).coverage != "full":
                    continue
            except InvalidArgument:
                continue
            yield case.but(law=name, origin=f"law {name}")
            found += 1
            if found >= per_law:
                break


def run_law(device: Device, case: Case, seed: int) -> Outcome:
    """Test `case.law`; what goes before the judge comes as runs."""
    rule, reasons = match(device, case)
    if rule is None:
        return Outcome("unsupported", reason="; ".join(reasons))
    assert laws_of(case.op)
    try:
        broken, answers = LAWS[case.law].test(Runner(device, rule), case, make_data(case, seed))
    except RuntimeFault as error:
        return Outcome("failed", reason=f"{type(error).__name__}: {error}", rule=rule)
    runs = [[y.reshape(-1) for y in answer] for answer in answers]
    return Outcome("ran", runs, [f"law {case.law}: {b}" for b in broken], rule=rule, kernels_run=1)
