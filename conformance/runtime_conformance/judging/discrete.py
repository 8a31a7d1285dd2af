"""Judging of choices: the k largest, experts, drawn tokens. Ties may fall either way, borders of a draw too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.ops import EXACT
from runtime_conformance.case import Case
from runtime_conformance.judging.oracle import Oracle

BORDER = 2.0**-16
"""Cumulative probabilities in float32 over a vocabulary are known to about this much."""


def judge_topk(
    case: Case, outputs: Sequence[Any], oracle: Oracle, inputs: Mapping[str, Any], reasons: list[str]
) -> None:
    """Values are those of the reference, and indices are distinct and point at them."""
    import numpy as np

    values, indices = outputs
    wanted = oracle.outputs[0].value
    x = inputs["x"]
    if values.shape != wanted.shape or indices.shape != wanted.shape:
        reasons.append(f"shapes {list(values.shape)} and {list(indices.shape)}, expected {list(wanted.shape)}")
        return
    if not np.array_equal(values, wanted, equal_nan=True):
        row = int(np.argwhere(~((values == wanted) | (np.isnan(values) & np.isnan(wanted))))[0][0])
        reasons.append(f"values of row {row} are not the {wanted.shape[1]} largest in descending order")
        return
    if indices.min(initial=0) < 0 or indices.max(initial=0) >= x.shape[1]:
        reasons.append(f"indices lie in {indices.min()} .. {indices.max()}, x has {x.shape[1]} columns")
        return
    picked = np.take_along_axis(x, indices, 1)
    wrong = ~((picked == values) | (np.isnan(picked) & np.isnan(values)))
    repeated = np.array([len(set(row)) < len(row) for row in indices.tolist()])
    if wrong.any() or repeated.any():
        row = int(np.argwhere(wrong.any(1) | repeated)[0][0])
        reasons.append(f"indices of row {row} do not point at its values, or repeat")


def judge_route(expert_ids: Any, oracle: Oracle, inputs: Mapping[str, Any], reasons: list[str]) -> None:
    """Experts are those of the reference; only experts with equal logits may stand for each other."""
    import numpy as np

    wanted = oracle.outputs[0].value
    logits = inputs["logits"]
    if expert_ids.shape != wanted.shape:
        reasons.append(f"shape {list(expert_ids.shape)}, expected {list(wanted.shape)}")
        return
    if expert_ids.min(initial=0) < 0 or expert_ids.max(initial=0) >= logits.shape[1]:
        reasons.append(f"experts {expert_ids.min()} .. {expert_ids.max()} are chosen, there are {logits.shape[1]}")
        return
    bias = inputs.get("bias", np.zeros(logits.shape[1]))
    keys = [np.stack([np.take_along_axis(logits, ids, 1), bias[ids]]) for ids in (expert_ids, wanted)]
    repeated = np.array([len(set(row)) < len(row) for row in expert_ids.tolist()])
    wrong = (keys[0] != keys[1]).any(0).any(1) | repeated
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        reasons.append(f"experts of row {row} are {expert_ids[row].tolist()}, expected {wanted[row].tolist()}")


def judge_draws(
    case: Case, outputs: Sequence[Any], oracle: Oracle, inputs: Mapping[str, Any], reasons: list[str]
) -> None:
    """Tokens are those that the random numbers demand; at a border of two tokens either may be drawn."""
    import numpy as np

    wanted = [e.value for e in oracle.outputs]
    if any(y.shape != w.shape for y, w in zip(outputs, wanted)):
        reasons.append(f"shapes {[list(y.shape) for y in outputs]}, expected {[list(w.shape) for w in wanted]}")
        return
    wrong = np.zeros(wanted[0].shape[0], bool)
    for y, w in zip(outputs, wanted):
        wrong |= y != w
    for change in _changes(case):
        if not wrong.any():
            return
        varied = {**inputs, **{n: np.clip(inputs[n] * f + d, 0, None) for n, (f, d) in change.items()}}
        others = case.declaration.run_reference(EXACT, varied, case.attrs)
        same = np.ones_like(wrong)
        for y, o in zip(outputs, others):
            same &= y == o
        wrong &= ~same
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        got = [int(y[row]) for y in outputs]
        reasons.append(
            f"{int(wrong.sum())} of {wrong.size} rows drew another token; row {row}: {got}, "
            f"expected {[int(w[row]) for w in wanted]}"
        )


def _changes(case: Case) -> list[dict[str, tuple[float, float]]]:
    """Input -> (factor, summand): variations within what float32 leaves open."""
    shifts = [{"uniform": (1.0, d)} for d in (BORDER, -BORDER)]
    if case.op == "sample@1":
        shifts += [{name: (1.0 + d, 0.0)} for name in ("top_p", "min_p", "typical_p") for d in (BORDER, -BORDER)]
    return shifts
