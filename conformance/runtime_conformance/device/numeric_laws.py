"""Laws of arithmetic: scale, shift, rotation. They reach numbers for which the oracle has no cases, or no tolerance.

Data of laws with a tolerance of their own are whole numbers, exact in every format, so that only the operation rounds.
"""

from __future__ import annotations

from typing import Any

from runtime.dtypes import FORMATS, encode
from runtime_conformance.case import Case
from runtime_conformance.device.laws import LAWS, Answer, Law, NotEvaluable, Runner, Stored
from runtime_conformance.device.units import unit

Result = tuple[list[str], list[Answer]]

SCALE = 2.0**10
FAR_POSITION = 1 << 20
"""A million: the longest contexts that models are sold with."""
FAR_SHIFT = 20_000
_NORM_SHIFT = {"f32": 1024.0, "f16": 1024.0, "bf16": 64.0}
"""Added to whole numbers up to 3: exact in the format, and large enough for E[x^2] - E[x]^2 to cancel."""
_SOFTMAX_SHIFT = -128.0


def _stored(fmt: str, values: Any) -> Any:
    import numpy as np

    return np.frombuffer(encode(FORMATS[fmt], np.ascontiguousarray(values, np.float32)), np.uint8)


def _whole(shape: tuple[int, ...], low: int, high: int) -> Any:
    """Whole numbers, every value in every row, in an order that differs from row to row."""
    import numpy as np

    rows, columns = np.indices(shape)
    return (low + (columns * 5 + rows * 3 + columns // 7) % (high - low + 1)).astype(np.float64)


def _activations_are_exact(runner: Runner) -> None:
    """Raises NotEvaluable where whole numbers are rounded on their way in."""
    activation = runner.rule.numerics.activation
    if activation.startswith("i8/"):
        raise NotEvaluable(f"activations are declared {activation}: a shift changes their scales")


def _scale_invariant(runner: Runner, case: Case, stored: Stored) -> Result:
    """x and eps scaled by powers of two: the same result, before the judge."""
    import numpy as np

    x = case.inputs["x"]
    values = x.spec.format.decode(stored["x"], x.shape).astype(np.float64)
    scaled = case.but(attrs={**case.attrs, "eps": case.attrs["eps"] * SCALE**2})
    return [], [runner.run(scaled, {**stored, "x": _stored(x.format, values * SCALE)})]


def _shift_invariant(runner: Runner, case: Case, stored: Stored) -> Result:
    """A number added to all elements of a row changes nothing."""
    _activations_are_exact(runner)
    return (_softmax_shifted if case.op == "softmax@1" else _norm_shifted)(runner, case, stored)


def _norm_shifted(runner: Runner, case: Case, stored: Stored) -> Result:
    import numpy as np

    x, numerics = case.inputs["x"], runner.rule.numerics
    shift = _NORM_SHIFT["bf16" if numerics.activation == "bf16" else x.format]
    allowed = 16 * unit(numerics.accumulate) * (shift + 3)
    if allowed > 0.25:
        raise NotEvaluable(f"sums in {numerics.accumulate} lose a row that lies {shift:g} from zero")
    values = _whole(x.shape, -3, 3)
    answers = [runner.run(case, {**stored, "x": _stored(x.format, v)}) for v in (values, values + shift)]
    y, moved = (runner.values(case, a)[0] for a in answers)
    weight = case.inputs["weight"]
    gains = np.abs(weight.spec.format.decode(stored["weight"], weight.shape)).astype(np.float64)
    out = max(unit(numerics.output), unit(x.format), unit(numerics.activation))
    off = np.abs(y - moved) - allowed * gains - 4 * out * (np.abs(y) + gains)
    return _first("a row that is shifted as a whole gives another result", off, y, moved)


def _softmax_shifted(runner: Runner, case: Case, stored: Stored) -> Result:
    import numpy as np

    x, numerics = case.inputs["x"], runner.rule.numerics
    scale = abs(case.attrs.get("scale", 1.0))
    allowed = 16 * unit(numerics.accumulate) * (abs(_SOFTMAX_SHIFT) + 8) * scale
    if allowed > 0.25:
        raise NotEvaluable(f"scores in {numerics.accumulate} lose a shift of {_SOFTMAX_SHIFT:g}")
    values = _whole(x.shape, -8, 8)
    y, moved = (
        runner.values(case, runner.run(case, {**stored, "x": _stored(x.format, v)}))[0]
        for v in (values, values + _SOFTMAX_SHIFT)
    )
    out = 4 * max(unit(numerics.output), unit(x.format))
    size = np.abs(y)
    limit = allowed + out * size if case.attrs.get("log") else (allowed + out) * size
    smallest = 2.0**-24 if "f16" in (x.format, numerics.output) else 2.0**-126
    return _first(
        "scores that are all shifted give other probabilities", np.abs(y - moved) - limit - smallest, y, moved
    )


def _first(what: str, off: Any, y: Any, moved: Any) -> Result:
    """Where `off` is positive, or no number."""
    import numpy as np

    wrong = ~(off <= 0)
    if not wrong.any():
        return [], []
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return [
        f"{what}: {int(wrong.sum())} of {wrong.size} elements, element {list(at)} {y[at]:.7g} and {moved[at]:.7g}"
    ], []


def _heads(case: Case, values: Any) -> Any:
    return values.reshape(len(values), -1, case.attrs["head_dim"])


def _norm_preserving(runner: Runner, case: Case, stored: Stored) -> Result:
    """A rotation keeps the length of the rotated part of every head, however large the angle is."""
    import numpy as np

    x, numerics = case.inputs["x"], runner.rule.numerics
    count = x.shape[0]
    positions = (FAR_POSITION + 17 * np.arange(count)).astype("<i4")
    y = _heads(case, runner.values(case, runner.run(case, {**stored, "positions": positions.view(np.uint8)}))[0])
    before = _heads(case, x.spec.format.decode(stored["x"], x.shape).astype(np.float64))
    rotated = 2 * case.inputs["inv_freq"].shape[0]
    was, now = (np.sqrt((a[..., :rotated] ** 2).sum(-1)) for a in (before * case.attrs.get("scale", 1.0), y))
    coarsest = max(unit(f) for f in (x.format, numerics.activation, numerics.accumulate, numerics.output))
    return _first("a rotation changes the length of a head", np.abs(now - was) - 16 * coarsest * was, was, now)


def _relative(runner: Runner, case: Case, stored: Stored) -> Result:
    """Products of rotated rows depend on the distance of their positions alone."""
    import numpy as np

    x, numerics = case.inputs["x"], runner.rule.numerics
    if unit(numerics.accumulate) > 2.0**-24:
        raise NotEvaluable(f"angles in {numerics.accumulate} do not tell one position from the next")
    count = x.shape[0]
    made, sizes = [], []
    for start in (0, FAR_SHIFT):
        positions = (start + 3 * np.arange(count)).astype("<i4").view(np.uint8)
        y = _heads(case, runner.values(case, runner.run(case, {**stored, "positions": positions}))[0])
        made.append(np.einsum("ihd,jhd->hij", y, y))
        sizes.append(np.sqrt((y * y).sum(-1)))
    coarsest = max(unit(f) for f in (x.format, numerics.activation, numerics.output))
    allowed = 4 * (FAR_SHIFT + 3 * count) * 2.0**-24 + 16 * coarsest
    limit = allowed * np.einsum("ih,jh->hij", sizes[0], sizes[0])
    off = np.abs(made[0] - made[1]) - limit
    return _first("scores depend on where the rows are, not on their distance", off, *made)


def _add(name: str, applies: Any, test: Any) -> None:
    LAWS[name] = Law(name, applies, test)


_add("scale_invariant", lambda c: c.kind == "normal", _scale_invariant)
_add("shift_invariant", lambda c: c.inputs["x"].shape[1] >= 16, _shift_invariant)
_add("norm_preserving", lambda c: c.kind == "normal", _norm_preserving)
_add("scores_depend_on_distance", lambda c: c.kind == "normal" and c.inputs["x"].shape[0] >= 2, _relative)
