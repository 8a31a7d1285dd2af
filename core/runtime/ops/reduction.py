"""Over the columns of each row: softmax, topk, argmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.checks import fixed
from runtime.ops.costs import elementwise, total_nbytes
from runtime.ops.declare import Attr, Attrs, Check, Op, Port, Refusal, Specs, Work
from runtime.ops.rounding import Rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SORT_WIDTH = 1024
"""Up to here sorting all rows at once is faster than a partial sort row by row."""


def _softmax(r: Rounding, x: NDArray[Any], log: bool = False, scale: float = 1.0) -> NDArray[Any]:
    import numpy as np

    x = r("activation", x) * scale
    largest = x.max(-1, keepdims=True)
    shifted = r("accumulate", x - np.where(np.isneginf(largest), 0.0, largest))
    e = r("accumulate", np.exp(shifted))
    total = r.sum(e)
    total = np.where(total == 0, 1.0, total)  # nothing but -inf: every probability is 0
    return r("output", shifted - r("accumulate", np.log(total)) if log else e / total)


def _topk(r: Rounding, x: NDArray[Any], k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    import numpy as np

    if x.shape[1] <= _SORT_WIDTH:
        indices = np.argsort(-_comparable(x), axis=1, kind="stable")[:, :k]
    else:
        indices = np.empty((x.shape[0], k), np.int64)
        for row, values in zip(indices, _comparable(x)):
            row[:] = _largest(values, k)
    return np.take_along_axis(x, indices, 1), indices


def _largest(values: NDArray[Any], k: int) -> NDArray[Any]:
    """Indices of the k largest values, descending; among equals the lower index first."""
    import numpy as np

    border = np.partition(values, values.size - k)[values.size - k]
    candidates = (values >= border).nonzero()[0]
    order = np.argsort(-values[candidates], kind="stable")[:k]
    result: NDArray[Any] = candidates[order]
    return result


def _comparable(x: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.where(np.isnan(x), -np.inf, x)


def _infer_topk(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    x, k = inputs["x"], attrs["k"]
    if fixed("topk@1", "N of x", x.shape[1]) < k:
        raise InvalidArgument(f"topk@1 k = {k} is more than the {x.shape[1]} columns of x")
    shape = (x.shape[0], k)
    return TensorSpec(x.format, shape), TensorSpec(FORMATS["i32"], shape)


def _work_topk(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    """One comparison per element read, and log2(k) more for what stays."""
    t, n = inputs["x"].resolve({})
    kept = t * attrs["k"] * max(1, attrs["k"].bit_length())
    return Work(t * n + kept, total_nbytes(inputs), total_nbytes(outputs))


def _argmax(r: Rounding, x: NDArray[Any]) -> NDArray[Any]:
    indices: NDArray[Any] = _comparable(x).argmax(1)
    return indices


def _infer_argmax(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    fixed("argmax@1", "N of x", inputs["x"].shape[1])
    return (TensorSpec(FORMATS["i32"], inputs["x"].shape[:1]),)


def _work_argmax(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    t, n = inputs["x"].resolve({})
    return Work(t * n, total_nbytes(inputs), total_nbytes(outputs))


SOFTMAX = Op(
    name="softmax",
    version=1,
    family="reduction",
    doc=(
        "y = exp(scale * x) / sum of exp(scale * x) over each row, computed with the largest score subtracted; with "
        "log, its logarithm. -inf has probability 0."
    ),
    inputs=(Port("x", ("T", "K"), doc="scores"),),
    outputs=(Port("y", ("T", "K"), doc="probabilities, or their logarithms"),),
    attrs=(
        Attr("log", bool, "give logarithms", False),
        Attr("scale", float, "factor on the scores: 1 / temperature", 1.0),
    ),
    reference=_softmax,
    work=elementwise(5),
    check=Check("statistical"),
    rounding=("activation", "accumulate", "output"),
    laws=("row_independent", "rows_sum_to_one", "shift_invariant"),
    refusals=(
        Refusal("x is floating", {"x": ("i32", (2, 8))}),
        Refusal("scale is finite", {"x": ("f32", (2, 8))}, {"scale": float("nan")}),
    ),
)

TOPK = Op(
    name="topk",
    version=1,
    family="reduction",
    doc="The k largest elements of each row in descending order and where they were; among equals the lower index "
    "comes first. NaN counts as -inf.",
    inputs=(Port("x", ("T", "N"), doc="scores"),),
    outputs=(
        Port("values", ("T", "k"), doc="largest elements, descending"),
        Port("indices", ("T", "k"), ("i32",), doc="their columns"),
    ),
    attrs=(Attr("k", int, "how many, at most N", required=True, minimum=1),),
    reference=_topk,
    work=_work_topk,
    check=Check("set"),
    infer=_infer_topk,
    laws=("row_independent", "values_are_at_indices", "first_is_argmax"),
    refusals=(
        Refusal("k is at most N", {"x": ("f32", (2, 8))}, {"k": 9}),
        Refusal("k is at least 1", {"x": ("f32", (2, 8))}, {"k": 0}),
    ),
)

ARGMAX = Op(
    name="argmax",
    version=1,
    family="reduction",
    doc="The column of the largest element of each row; among equals the lowest. NaN counts as -inf.",
    inputs=(Port("x", ("T", "N"), doc="scores"),),
    outputs=(Port("indices", ("T",), ("i32",), doc="one column per row"),),
    reference=_argmax,
    work=_work_argmax,
    check=Check("exact"),
    infer=_infer_argmax,
    laws=("row_independent", "equals_first_of_topk"),
    refusals=(
        Refusal("x is floating", {"x": ("i32", (2, 8))}),
        Refusal("a row has at least one column", {"x": ("f32", (2, 0))}),
    ),
)

OPS = (SOFTMAX, TOPK, ARGMAX)
