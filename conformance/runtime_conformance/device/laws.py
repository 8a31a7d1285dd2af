"""Laws: relations between runs of one device, with no oracle and no tolerance.

A law makes a second question out of the case whose answer must be the same bytes as parts of the first answer; where
a device may legally round differently, the second answer goes before the judge instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from runtime.backend import Device, Manifest, Rule, RuntimeFault
from runtime.errors import InvalidArgument
from runtime.ops import CATALOGUE
from runtime_conformance.case import Case, Tensor, facts, output_specs
from runtime_conformance.cases.covering import covering_rows
from runtime_conformance.cases.space import Space
from runtime_conformance.data import make_data
from runtime_conformance.device.run import POISONS, Outcome, Session, decode_outputs, match

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


class NotEvaluable(Exception):  # noqa: N818  (an answer, not an error)
    """The law cannot be tested on this device with this case; `str` says why."""


class Runner:
    """Runs variants of a case on the device, each compiled anew."""

    def __init__(self, device: Device, rule: Rule, seed: int) -> None:
        self.device, self.rule, self.seed = device, rule, seed

    @property
    def is_batch_invariant(self) -> bool:
        """Whether the same bits are promised alone and in a batch."""
        return "batch_invariant" in self.rule.flags

    def run(self, case: Case, stored: Mapping[str, Any], *, expand: bool = False) -> Answer:
        """Bytes of every output, in rows."""
        session = Session(self.device, case, stored, expand=expand)
        try:
            return shaped(session.run(stored, POISONS[0]), case)
        finally:
            session.close()

    def values(self, case: Case, answer: Answer) -> list[Any]:
        """Outputs as numbers: float64, int64."""
        return decode_outputs(case, [y.reshape(-1) for y in answer], output_specs(case))

    def require(self, case: Case) -> Rule:
        """The rule that claims a variant; raises NotEvaluable where there is none."""
        rule, reasons = match(self.device, case)
        if rule is None:
            raise NotEvaluable(f"the device does not claim {case.op} {case.describe()}: {'; '.join(reasons)}")
        return rule


def shaped(raw: list[Any], case: Case) -> Answer:
    """Outputs in rows, so that some can be picked."""
    return [_shaped(y, spec) for y, spec in zip(raw, output_specs(case))]


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


def num_rows(case: Case) -> int:
    """Rows of the step that the operation treats one by one."""
    counts = {case.inputs[name].shape[0] for name in _row_inputs(case)}
    return counts.pop() if len(counts) == 1 else 0


def _row_independent(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    """Each row alone: the same bits where batch invariance is declared, otherwise the judge looks at them."""
    import numpy as np

    whole = runner.run(case, stored)
    parts = []
    for row in range(num_rows(case)):
        alone, data = with_rows(case, stored, [row])
        runner.require(alone)
        parts.append(runner.run(alone, data))
    joined = [np.concatenate([p[i] for p in parts]) for i in range(len(whole))]
    if runner.is_batch_invariant and not all(np.array_equal(a, b) for a, b in zip(whole, joined)):
        return ["rows computed alone differ from the same rows in a batch, although batch_invariant is declared"], []
    return [], [joined]


def _reordered(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    """Rows in reverse order give the answers in reverse order."""
    import numpy as np

    order = list(range(num_rows(case)))[::-1]
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
    runner.require(again)
    twice = runner.run(again, {"x": np.ascontiguousarray(once).reshape(-1)})[0]
    return ([] if np.array_equal(once, twice) else ["a second conversion changes the result"]), []


def _position_zero(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    import numpy as np

    y = runner.run(case, {**stored, "positions": np.zeros(case.inputs["positions"].shape[0], "<i4").view(np.uint8)})[0]
    numerics = runner.rule.numerics
    if not {case.inputs["x"].format, numerics.activation, numerics.output} <= {"f32", "f64"}:
        raise NotEvaluable(f"x is {case.inputs['x'].format}, declared is {numerics}: the input itself is rounded")
    if not np.array_equal(y.reshape(-1), stored["x"]):
        return ["a rotation at position 0 changes its input"], []
    return [], []


def _untouched(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    """What is no target keeps every byte: all of the cache where every slot is -1, otherwise the blocks not named."""
    import numpy as np

    kv = case.inputs["kv"]
    if kv.format == "q8_0":
        raise NotEvaluable("a cache in q8_0 may be held in another form of the same values")
    if "slot_mapping" in stored:
        nothing = np.full(case.inputs["slot_mapping"].shape[0], -1, "<i4").view(np.uint8)
        y = runner.run(case, {**stored, "slot_mapping": nothing})[0]
        same = np.array_equal(y.reshape(-1), stored["kv"])
        return ([] if same else ["slots of -1 must write nothing, the cache has changed"]), []
    targets = stored["target_blocks" if "target_blocks" in stored else "block_ids"].view("<i4")
    before, after = (c.reshape(2, kv.shape[1], -1) for c in (stored["kv"], runner.run(case, stored)[0]))
    others = [b for b in range(kv.shape[1]) if b not in targets]
    same = np.array_equal(before[:, others], after[:, others])
    return ([] if same else ["blocks that are no targets have changed"]), []


def _sorted_first(runner: Runner, case: Case, stored: Stored) -> tuple[list[str], list[Answer]]:
    """The first of topk is argmax; the lower index among equals."""
    import numpy as np

    other = Case("argmax@1", {"x": case.inputs["x"]}, {}, case.kind)
    runner.require(other)
    indices = runner.run(case, stored)[1].reshape(case.inputs["x"].shape[0], -1)[:, :4].copy().view("<i4").reshape(-1)
    largest = runner.run(other, stored)[0].reshape(-1).view("<i4")
    return ([] if np.array_equal(indices, largest) else ["the first of topk is not argmax"]), []


LAWS: dict[str, Law] = {}


def _add(name: str, applies: Callable[[Case], bool], test: Any) -> None:
    LAWS[name] = Law(name, applies, test)


_add("row_independent", lambda c: 2 <= num_rows(c) <= 40 and c.declaration.family != "composite", _row_independent)
_add("rows_may_be_reordered", lambda c: num_rows(c) >= 2 and c.declaration.family != "composite", _reordered)
_add("commutative", lambda c: "b" in c.inputs and c.inputs["a"].format == c.inputs["b"].format, _commutative)
_add("all_rows_in_order_is_identity", lambda c: True, _identity_gather)
_add("repeated_tokens_give_equal_rows", lambda c: c.inputs["token_ids"].shape[0] > 1, _equal_rows)
_add("idempotent", lambda c: True, _idempotent)
_add("position_zero_is_identity", lambda c: c.attrs.get("scale", 1.0) == 1.0, _position_zero)
_add("untouched_slots_keep_their_bytes", lambda c: "kv" in c.inputs, _untouched)
_add("first_is_argmax", lambda c: True, _sorted_first)


EVERYWHERE = ("batch_invariant",)
"""Declared laws without a test of their own: where a rule declares the flag, `row_independent` and
`sequences_are_independent` compare bits."""
_EXTRA = {
    "attention@1": (
        "unused_table_entries_leave_no_trace",
        "sequences_may_be_permuted",
        "padding_rows_change_nothing",
    ),
    "sample@1": ("frequencies_follow_probabilities",),
    "verify_draft@1": ("speculative_equals_greedy",),
}
"""Laws beyond those that the catalogue names."""


def laws_of(op_key: str, manifest: Manifest | None = None) -> list[str]:
    """Names of the laws that are tested for an operation, with those that only the flags of `manifest` make apply."""
    from runtime_conformance.device import graph_laws, numeric_laws, paging_laws, row_laws, token_laws

    assert all(
        m.__doc__ for m in (graph_laws, numeric_laws, paging_laws, row_laws, token_laws)
    )  # each registers its own
    declared = CATALOGUE[op_key].laws
    names = [n for n in declared if n not in EVERYWHERE]
    if "row_independent" in declared:
        names.append("rows_may_be_reordered")
    names += _EXTRA.get(op_key, ())
    rules = () if manifest is None else manifest.rules
    if any(r.op == op_key and "capturable" in r.flags for r in rules):
        names.append("captured_equals_eager")
    return names


def law_cases(space: Space, manifest: Manifest, limit: int) -> Iterator[Case]:
    """For every law of the operation, the first cases of its covering array to which it applies."""
    per_law = 1 if limit <= 4 else 3
    for name in laws_of(space.op, manifest):
        found = 0
        rows = covering_rows(space.op, space.domains, lambda r: space.build(r) is not None)
        for row in islice(rows, 80):
            case = space.build(row)
            if case is None or case.kind in ("nonfinite", "denormal", "wide", "ties") or not LAWS[name].applies(case):
                continue
            try:
                if manifest.match(case.op, facts(case)).coverage != "full":
                    continue
            except InvalidArgument:
                continue
            yield case.but(law=name, origin=f"law {name}")
            found += 1
            if found >= per_law:
                break


def untested_laws(manifest: Manifest, cases: Sequence[Case]) -> Iterator[tuple[str, str]]:
    """(operation, law) of claimed operations among `cases` for which no case could be made."""
    claimed = {r.op for r in manifest.rules}
    tested = {(c.op, c.law) for c in cases}
    for op_key in sorted({c.op for c in cases} & claimed):
        yield from ((op_key, name) for name in laws_of(op_key, manifest) if (op_key, name) not in tested)


def run_law(device: Device, case: Case, seed: int) -> Outcome:
    """Test `case.law`; what goes before the judge comes as runs."""
    rule, reasons = match(device, case)
    if rule is None:
        return Outcome("unsupported", reason="; ".join(reasons))
    assert case.law in laws_of(case.op, device.manifest)
    try:
        broken, answers = LAWS[case.law].test(Runner(device, rule, seed), case, make_data(case, seed))
    except NotEvaluable as why:
        return Outcome("vacuous", reason=f"law {case.law} cannot be tested: {why}", rule=rule)
    except RuntimeFault as error:
        return Outcome("failed", reason=f"{type(error).__name__}: {error}", rule=rule)
    runs = [[y.reshape(-1) for y in answer] for answer in answers]
    return Outcome("ran", runs, [f"law {case.law}: {b}" for b in broken], rule=rule, kernels_run=1)
