"""Proof of power: a case counts only if it rejects results that are plainly wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.dtypes import FORMATS
from runtime.errors import InvalidArgument
from runtime_conformance.case import Case
from runtime_conformance.judging.judge import judge
from runtime_conformance.judging.oracle import Oracle, run_reference

Outputs = list[Any]
_GAIN_KINDS = ("normal", "exact", "peaked", "outlier")


def weaknesses(case: Case, oracle: Oracle, inputs: Mapping[str, Any]) -> list[str]:
    """Names of the faults that the case would let pass; it is VACUOUS unless there are none."""
    import numpy as np

    right = [e.value for e in oracle.outputs]
    found, num_tried = [], 0
    with np.errstate(all="ignore"):
        for name, wrong in _mutants(case, right, inputs):
            if all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(wrong, right)):
                continue
            num_tried += 1
            if judge(case, wrong, oracle, inputs).passed:
                found.append(name)
    return found if num_tried else ["anything"]


def _mutants(case: Case, right: Sequence[Any], inputs: Mapping[str, Any]) -> Iterator[tuple[str, Outputs]]:
    import numpy as np

    yield "zeros", [np.zeros_like(y) for y in right]
    yield (
        "stale output",
        [np.roll(y.reshape(-1), max(1, y.size // 3)).reshape(y.shape) + (y.dtype.kind != "f") for y in right],
    )
    copies = [_copy_of_input(case, y, inputs) for y in right]
    if any(c is not None for c in copies):
        yield "copied input", [y if c is None else c for c, y in zip(copies, right)]
    is_blocks = any(FORMATS[t.format].bits < 16 and t.layout == "kv" for t in case.inputs.values())  # too coarse
    is_coarse = case.declaration.check.metric == "ulp" and any(t.format == "bf16" for t in case.inputs.values())
    if case.kind in _GAIN_KINDS and case.declaration.family != "sampling" and not is_blocks and not is_coarse:
        yield "gain 1.01", [y * 1.01 if y.dtype.kind == "f" else y for y in right]
    yield from _rows(right)
    yield from _inputs(case, inputs)


def _copy_of_input(case: Case, y: Any, inputs: Mapping[str, Any]) -> Any:
    import numpy as np

    for name, x in inputs.items():
        if x.shape == y.shape and case.inputs[name].role != "weight" and x.dtype.kind == y.dtype.kind:
            return np.array(x)
    return None


def _rows(right: Sequence[Any]) -> Iterator[tuple[str, Outputs]]:
    """One row zeroed, two rows swapped: those where it shows most."""
    import numpy as np

    zeroed, swapped = [], []
    for y in right:
        a, b = np.array(y), np.array(y)
        if y.ndim and y.shape[0]:
            flat = np.nan_to_num(y.reshape(y.shape[0], -1).astype(float), posinf=1.0, neginf=1.0)
            a[int((flat**2).sum(1).argmax())] = 0
            other = int(((flat - flat[0]) ** 2).sum(1).argmax())
            b[[0, other]] = b[[other, 0]]
        zeroed.append(a)
        swapped.append(b)
    yield "one row zeroed", zeroed
    yield "two rows swapped", swapped


def _inputs(case: Case, inputs: Mapping[str, Any]) -> Iterator[tuple[str, Outputs]]:
    """Right answers to slightly wrong questions."""
    changes: list[tuple[str, dict[str, Any]]] = []
    if case.op in ("linear@1", "moe_linear@1", "rms_norm_linear@1", "swiglu_ffn@1") and case.kind in (
        "normal",
        "exact",
    ):
        changes.append(("last k dropped", {"x": _without_last(inputs["x"])}))
    if case.op == "attention@1":
        lengths = inputs["seq_lens"]
        if case.kind == "peaked" and case.attrs.get("causal", True):
            changes.append(("mask off by one, newest key hidden", {"seq_lens": lengths - (lengths > _queries(inputs))}))
            changes.append(("mask off by one, next key visible", {"seq_lens": lengths + 1}))
        changes.append(("wrong block", {"block_table": _wrong_block(inputs, case.inputs["kv"].shape[2])}))
    for name, change in changes:
        try:
            yield name, list(run_reference(case, {**inputs, **change}))
        except InvalidArgument:
            continue  # the changed question is not allowed: the fault cannot occur here


def _without_last(x: Any) -> Any:
    import numpy as np

    y = np.array(x)
    y[..., -1] = 0
    return y


def _queries(inputs: Mapping[str, Any]) -> Any:
    starts = inputs["query_start_loc"]
    return starts[1:] - starts[:-1]


def _wrong_block(inputs: Mapping[str, Any], block_size: int) -> Any:
    """The newest block of every sequence exchanged for one that is not its own."""
    import numpy as np

    table = np.array(inputs["block_table"])
    num_blocks = inputs["kv"].shape[1]
    for s, length in enumerate(inputs["seq_lens"].tolist()):
        column = max(0, -(-length // block_size) - 1)
        table[s, column] = (table[s, column] + 1) % num_blocks
    return table
