"""Laws of operations on rows: symmetry, bounds, sums, and operations that undo each other."""

from __future__ import annotations

from typing import Any

from runtime_conformance.case import Case, Tensor
from runtime_conformance.device.laws import LAWS, Answer, Law, NotEvaluable, Runner, Stored

Result = tuple[list[str], list[Answer]]


def _flipped(stored: Any, size: int) -> Any:
    """Every number with its sign turned: the highest bit of its last byte."""
    import numpy as np

    raw = np.array(stored).reshape(-1, size)
    raw[:, -1] ^= 0x80
    return raw.reshape(-1)


def _odd(runner: Runner, case: Case, stored: Stored) -> Result:
    """f(-x) = -f(x): the second way goes before the judge."""
    size = case.inputs["x"].spec.format.block_bytes
    turned = runner.run(case, {**stored, "x": _flipped(stored["x"], size)})[0]
    return [], [[_flipped(turned.reshape(-1), size)]]


def _bounded(runner: Runner, case: Case, stored: Stored) -> Result:
    """No result is larger than the cap, which its format may round up."""
    import numpy as np

    spec = case.inputs["x"].spec
    y = spec.format.decode(np.ascontiguousarray(runner.run(case, stored)[0]).reshape(-1), case.inputs["x"].shape)
    largest = float(np.abs(y[np.isfinite(y)].astype(float)).max(initial=0.0))
    return ([] if largest <= case.attrs["cap"] * (1 + 2.0**-8) else [f"|y| reaches {largest:.6g}"]), []


def _columns_moved(runner: Runner, case: Case, stored: Stored) -> Result:
    """Columns in reverse order give the answers in reverse order, before the judge."""
    import numpy as np

    other = dict(stored)
    for name, tensor in case.inputs.items():
        size = tensor.spec.format.block_bytes
        columns = stored[name].reshape(*tensor.shape, size)
        other[name] = np.ascontiguousarray(columns[:, ::-1]).reshape(-1)
    y = runner.run(case, other)[0]
    first = next(iter(case.inputs.values()))
    back = y.reshape(*first.shape, -1)[:, ::-1]
    return [], [[np.ascontiguousarray(back).reshape(first.shape[0], -1)]]


def _sums_to_one(runner: Runner, case: Case, stored: Stored) -> Result:
    """Probabilities of a row add up, within the rounding of as many numbers."""
    import numpy as np

    spec = case.inputs["x"].spec
    y = spec.format.decode(np.ascontiguousarray(runner.run(case, stored)[0]).reshape(-1), case.inputs["x"].shape)
    unit = {"f16": 2.0**-10, "bf16": 2.0**-7}.get(spec.format.name, 2.0**-22)
    unit = max(unit, {"f16": 2.0**-10, "bf16": 2.0**-7}.get(runner.rule.numerics.output, 0.0))
    off = float(np.abs(y.astype(float).sum(1) - 1).max())
    return ([] if off <= 8 * unit else [f"a row sums to 1 + {off:.3g}"]), []


def _argmax_of_topk(runner: Runner, case: Case, stored: Stored) -> Result:
    """argmax is the first of topk."""
    import numpy as np

    other = Case("topk@1", {"x": case.inputs["x"]}, {"k": 1}, case.kind)
    runner.require(other)
    first = runner.run(other, stored)[1].reshape(-1).view("<i4")
    return (
        []
        if np.array_equal(runner.run(case, stored)[0].reshape(-1).view("<i4"), first)
        else ["argmax is not the first of topk"]
    ), []


def _concat_split(runner: Runner, case: Case, stored: Stored) -> Result:
    """Parts that are joined and cut again are the parts."""
    import numpy as np

    widths = tuple(t.shape[1] for t in case.inputs.values())
    first = case.inputs["x0"]
    other = Case("split@1", {"x": Tensor(first.format, (first.shape[0], sum(widths)))}, {"sizes": widths}, "exact")
    runner.require(other)
    whole = np.ascontiguousarray(runner.run(case, stored)[0]).reshape(-1)
    parts = runner.run(other, {"x": whole})
    equal = all(np.array_equal(p.reshape(-1), stored[f"x{i}"]) for i, p in enumerate(parts))
    return ([] if equal else ["split does not undo concat"]), []


def _split_concat(runner: Runner, case: Case, stored: Stored) -> Result:
    """Rows that are cut and joined again are the rows."""
    import numpy as np

    x, sizes = case.inputs["x"], case.attrs["sizes"]
    inputs = {f"x{i}": Tensor(x.format, (x.shape[0], n)) for i, n in enumerate(sizes)}
    other = Case("concat@1", inputs, {}, "exact")
    runner.require(other)
    parts = {f"x{i}": np.ascontiguousarray(p).reshape(-1) for i, p in enumerate(runner.run(case, stored))}
    whole = runner.run(other, parts)[0].reshape(-1)
    return ([] if np.array_equal(whole, stored["x"]) else ["concat does not undo split"]), []


def _one_rank(runner: Runner, case: Case, stored: Stored) -> Result:
    """A group of one gets what it gave."""
    import numpy as np

    attrs = {**case.attrs, **{n: 0 for n in ("root", "src", "dst") if n in case.attrs}}
    if runner.rule.numerics.output not in ("f32", "f64"):
        raise NotEvaluable(f"a sum is rounded to {runner.rule.numerics.output}")
    alone = case.but(inputs={"x0": case.inputs["x0"]}, attrs=attrs)
    runner.require(alone)
    y = runner.run(alone, {"x0": stored["x0"]})[0].reshape(-1)
    return ([] if np.array_equal(y, stored["x0"]) else ["a group of one rank changes its tensor"]), []


def _add(name: str, applies: Any, test: Any) -> None:
    LAWS[name] = Law(name, applies, test)


_add("odd", lambda c: c.inputs["x"].format in ("f32", "f16", "bf16"), _odd)
_add("bounded_by_cap", lambda c: True, _bounded)
_add("elementwise", lambda c: True, _columns_moved)
_add("rows_sum_to_one", lambda c: not c.attrs.get("log"), _sums_to_one)
_add("equals_first_of_topk", lambda c: True, _argmax_of_topk)
_add("split_of_concat_is_identity", lambda c: True, _concat_split)
_add("concat_of_split_is_identity", lambda c: True, _split_concat)
_add("one_rank_is_the_identity", lambda c: c.inputs["x0"].format == "f32", _one_rank)
