"""The judge: compares outputs with the oracle by the metric of the operation and says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.dtypes import FORMATS, round_to
from runtime_conformance.case import Case
from runtime_conformance.judging.discrete import judge_draws, judge_route, judge_topk
from runtime_conformance.judging.oracle import SMALLEST_NORMAL, Expected, Oracle, unit_in_last_place

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPREAD = 2.5
"""How many standard deviations of rms z, as the runs of the oracle show it, its limit leaves."""


@dataclass
class Judgement:
    """Whether outputs pass, why not, and figures for the report.

    figures   max_z, rms_z, gain_se (distance of the gain from 1 in standard errors), max_ulp, nmse, cosine, max_error
    """

    reasons: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Nothing is wrong."""
        return not self.reasons

    def worst(self, name: str, value: float) -> None:
        """Keep the larger figure."""
        if value == value:
            self.figures[name] = max(self.figures.get(name, 0.0), float(f"{value:.4g}"))


def judge(case: Case, outputs: Sequence[Any], oracle: Oracle, inputs: Mapping[str, Any]) -> Judgement:
    """Compare `outputs` (float64 or int64 arrays, uint8 for blocks that must match as bytes) with `oracle`."""
    import numpy as np

    result = Judgement()
    if len(outputs) != len(oracle.outputs):
        result.reasons.append(f"{len(outputs)} outputs, expected {len(oracle.outputs)}")
        return result
    metric = case.declaration.check.metric
    with np.errstate(all="ignore"):
        if metric == "distribution":
            judge_draws(case, outputs, oracle, inputs, result.reasons)
        elif case.op == "topk@1":
            judge_topk(case, outputs, oracle, inputs, result.reasons)
        else:
            given = list(zip(outputs, oracle.outputs))
            if case.op == "moe_route@1":
                judge_route(outputs[0], oracle, inputs, result.reasons)
                given = given[1:]
            for y, expected in given:
                _judge_one(case, y, expected, oracle, result)
    return result


def _judge_one(case: Case, y: Any, expected: Expected, oracle: Oracle, result: Judgement) -> None:
    check = case.declaration.check
    if y.shape != expected.value.shape:
        result.reasons.append(f"shape {list(y.shape)}, expected {list(expected.value.shape)}")
        return
    if y.dtype.kind != "f" or expected.value.dtype.kind != "f":
        _compare_exactly(y, expected.value, result)
        return
    fmt = FORMATS[expected.format]
    if fmt.is_quantized:
        _within_blocks(y, expected, result)
        return
    _figures(y, expected.value, result)
    # a move or a conversion has no arithmetic that could be coarser than its tensor
    computed = expected.value if check.metric == "exact" else round_to(expected.declared, expected.value)
    wanted = round_to(expected.format, computed)
    if oracle.is_exact or check.metric == "exact":
        # a conversion computes, a move does not
        _compare_exactly(
            y, wanted, result, SMALLEST_NORMAL.get(expected.format, 0.0) if case.op == "convert@1" else 0.0
        )
        return
    compared = _same_positions(y, expected, wanted, oracle.shares_scales, result)
    if check.metric == "ulp":
        _within_ulps(y, expected, compared, check.max_ulp, result)
    elif expected.sigma is not None:
        _within_deviation(y, expected, compared, case, result)


def _figures(y: NDArray[Any], value: NDArray[Any], result: Judgement) -> None:
    import numpy as np

    both = np.isfinite(y) & np.isfinite(value)
    a, b = y[both], value[both]
    power = float((b * b).sum())
    if power:
        result.worst("nmse", float(((a - b) ** 2).sum()) / power)
        norm = float((a * a).sum()) * power
        cosine = float((a * b).sum()) / norm**0.5 if norm > 0 else 0.0
        result.figures["cosine"] = min(result.figures.get("cosine", 1.0), float(f"{cosine:.7f}"))
    if a.size:
        result.worst("max_error", float(np.abs(a - b).max()))


def _compare_exactly(y: NDArray[Any], wanted: NDArray[Any], result: Judgement, flushed: float = 0.0) -> None:
    """All equal, but that what is smaller than `flushed` may be zero."""
    import numpy as np

    equal = y == wanted
    if y.dtype.kind == "f":
        equal |= np.isnan(y) & np.isnan(wanted)
        equal |= (y == 0) & (np.abs(wanted) < flushed)
    if not equal.all():
        wrong = ~equal
        result.reasons.append(
            f"{int(wrong.sum())} of {wrong.size} elements differ, all must be equal; {_first(wrong, y, wanted)}"
        )


def _same_positions(
    y: NDArray[Any], expected: Expected, wanted: NDArray[Any], shares_scales: bool, result: Judgement
) -> NDArray[Any]:
    """Where numbers can be compared; NaN and infinities must be where they belong."""
    import numpy as np

    value = expected.value
    limit = 65504.0 if "f16" in (expected.declared, expected.format) else 3.38e38
    # a result at the border of the format may round to infinity or stay
    at_border = np.isfinite(value) & (np.abs(value) > 0.98 * limit)
    wrong = (np.isnan(y) != np.isnan(wanted)) & ~at_border
    wrong |= (np.isinf(y) | np.isinf(wanted)) & (y != wanted) & ~np.isnan(y) & ~np.isnan(wanted) & ~at_border
    if shares_scales:
        wrong = (np.isfinite(y) != np.isfinite(wanted)) & ~at_border
    if wrong.any():
        result.reasons.append(
            f"NaN or infinity at {int(wrong.sum())} of {wrong.size} elements is not where it belongs; "
            f"{_first(wrong, y, wanted)}"
        )
    compared: NDArray[Any] = np.isfinite(y) & np.isfinite(wanted)
    return compared


def _within_ulps(y: NDArray[Any], expected: Expected, where: NDArray[Any], max_ulp: float, result: Judgement) -> None:
    import numpy as np

    error = np.where(where, np.abs(y - expected.value), 0.0)
    error = np.where(error <= SMALLEST_NORMAL.get(expected.declared, 0.0), 0.0, error)
    ulps = error / unit_in_last_place(expected.value, expected.declared, expected.format)
    result.worst("max_ulp", float(ulps.max(initial=0.0)))
    wrong = ulps > max_ulp + 0.5
    if wrong.any():
        result.reasons.append(
            f"{int(wrong.sum())} of {wrong.size} elements are more than {max_ulp:g} ulp ({expected.declared}) from the "
            f"correctly rounded value; {_first(wrong, y, expected.value)}"
        )


def _within_deviation(y: NDArray[Any], expected: Expected, where: NDArray[Any], case: Case, result: Judgement) -> None:
    import numpy as np

    check, value, sigma = case.declaration.check, expected.value, expected.sigma
    assert sigma is not None
    error = np.where(where, y - value, 0.0)
    error = np.where(np.abs(error) <= SMALLEST_NORMAL.get(expected.declared, 0.0), 0.0, error)
    z = error / sigma
    count = int(where.sum())
    if not count:
        return
    max_z = float(np.abs(z).max())
    if expected.computed is not None:  # slots of a cache that are not written must not hide those that are
        count = max(1, int((where & (expected.computed | (error != 0))).sum()))
    rms_z = float(np.sqrt((z * z).sum() / count))
    result.worst("max_z", max_z)
    result.worst("rms_z", rms_z)
    clean = np.where(where, value, 0.0)
    power = float((clean * clean).sum())
    gain_z = 0.0
    if power:
        gain_z = abs(float((error * clean).sum()) / power) / expected.gain_se
        result.worst("gain_se", gain_z)
    wrong = np.abs(z) > check.max_z
    rows = wrong.reshape(wrong.shape[0], -1).any(1) if wrong.ndim else wrong.reshape(1)
    found = []
    if wrong.any():
        found.append(f"max |z| {max_z:.3g} (limit {check.max_z:g})")
    # a handful of numbers, or numbers that share their errors, may all fall far from their mean
    limit = check.rms_z * (1 + SPREAD * expected.spread)
    if rms_z > limit:
        found.append(f"rms z {rms_z:.3g} (limit {limit:.3g})")
    # a few whole numbers share their rounding errors, which are then not random
    if gain_z > check.gain_se and case.kind != "exact":
        found.append(f"gain off by {gain_z:.3g} standard errors (limit {check.gain_se:g})")
    if found:
        where_wrong = f"; {int(rows.sum())} of {rows.size} rows; {_first(wrong, y, value)}" if wrong.any() else ""
        result.reasons.append(", ".join(found) + where_wrong)


def _within_blocks(y: NDArray[Any], expected: Expected, result: Judgement) -> None:
    """A value in a block format: within one step of the group's scale."""
    import numpy as np

    size = FORMATS[expected.format].group_size
    value = expected.value
    groups = np.abs(value).reshape(*value.shape[:-1], -1, size).max(-1, keepdims=True)
    step = np.broadcast_to(groups, (*value.shape[:-1], value.shape[-1] // size, size)).reshape(value.shape) / 127
    wrong = ~(np.abs(y - value) <= 0.75 * step + 2.0**-10 * np.abs(value))
    _figures(y, value, result)
    if wrong.any():
        result.reasons.append(
            f"{int(wrong.sum())} of {wrong.size} elements are further from the value than a step of "
            f"{expected.format}; {_first(wrong, y, value)}"
        )


def _first(wrong: NDArray[Any], y: NDArray[Any], wanted: NDArray[Any]) -> str:
    import numpy as np

    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f"first wrong element {list(index)}: {y[index]:.7g}, expected {wanted[index]:.7g}"
