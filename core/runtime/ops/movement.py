"""Rows and columns moved as they are: gather_rows, concat, split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes import TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.checks import check_equal, check_indices, fixed
from runtime.ops.costs import rows_nbytes, total_nbytes
from runtime.ops.declare import INDEX, Attr, Attrs, Check, Op, Port, Refusal, Specs, Work
from runtime.ops.rounding import Rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _gather_rows(r: Rounding, x: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    check_indices("gather_rows@1", "rows", rows, x.shape[0], what="rows in x")
    chosen: NDArray[Any] = x[rows]
    return chosen


def _work_gather(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    (n,) = inputs["rows"].resolve({})
    return Work(0, inputs["rows"].nbytes() + rows_nbytes(inputs["x"], n), outputs["y"].nbytes())


def _concat(r: Rounding, **parts: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.concatenate([parts[f"x{i}"] for i in range(len(parts))], axis=1)


def _infer_concat(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    parts = [inputs[f"x{i}"] for i in range(len(inputs))]
    width = 0
    for i, part in enumerate(parts):
        width += fixed("concat@1", f"K of x{i}", part.shape[1])
        if part.format.name != parts[0].format.name:
            raise InvalidArgument(f"concat@1 x{i} is {part}, x0 is {parts[0]}; all must have the same format")
    return (TensorSpec(parts[0].format, (parts[0].shape[0], width)),)


def _split(r: Rounding, x: NDArray[Any], sizes: tuple[int, ...]) -> tuple[NDArray[Any], ...]:
    parts, start = [], 0
    for size in sizes:
        parts.append(x[:, start : start + size])
        start += size
    return tuple(parts)


def _infer_split(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    x, sizes = inputs["x"], attrs["sizes"]
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise InvalidArgument(f"split@1 sizes = {sizes} must be whole numbers of at least 1")
    fixed("split@1", "K of x", x.shape[1])
    check_equal("split@1", "the sum of sizes", sum(sizes), x.shape[1], "the parts make up whole rows of x")
    return tuple(TensorSpec(x.format, (x.shape[0], size)) for size in sizes)


def _work_move(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    return Work(0, total_nbytes(inputs), total_nbytes(outputs))


GATHER_ROWS = Op(
    name="gather_rows",
    version=1,
    family="movement",
    doc="y[i] = x[rows[i]]: the rows whose logits are wanted, for example. A row may be taken more than once.",
    inputs=(
        Port("x", ("T", "K"), doc="rows to choose from"),
        Port("rows", ("R",), INDEX, doc="which rows, each in 0 .. T-1"),
    ),
    outputs=(Port("y", ("R", "K"), doc="the chosen rows, in order"),),
    reference=_gather_rows,
    work=_work_gather,
    check=Check("exact"),
    laws=("all_rows_in_order_is_identity",),
    refusals=(
        Refusal("rows are integers", {"x": ("f32", (4, 8)), "rows": ("f32", (2,))}),
        Refusal("rows exist", {"x": ("f32", (4, 8)), "rows": ("i32", (2,))}, values={"rows": [0, 4]}),
        Refusal("rows are not negative", {"x": ("f32", (4, 8)), "rows": ("i32", (2,))}, values={"rows": [-1, 0]}),
    ),
)

CONCAT = Op(
    name="concat",
    version=1,
    family="movement",
    doc="Rows side by side: y[t] = (x0[t], x1[t], ...).",
    inputs=(Port("x", ("T", "_K"), doc="parts of the rows, of any width, all of one format", variadic=True),),
    outputs=(Port("y", ("T", "K"), doc="whole rows, K the sum of the widths"),),
    reference=_concat,
    work=_work_move,
    check=Check("exact"),
    infer=_infer_concat,
    laws=("split_of_concat_is_identity",),
    refusals=(
        Refusal("all parts have T rows", {"x0": ("f32", (2, 8)), "x1": ("f32", (3, 8))}),
        Refusal("all parts have one format", {"x0": ("f32", (2, 8)), "x1": ("f16", (2, 8))}),
        Refusal("parts are numbered without a gap", {"x0": ("f32", (2, 8)), "x2": ("f32", (2, 8))}),
    ),
)

SPLIT = Op(
    name="split",
    version=1,
    family="movement",
    doc="Cuts every row into parts of the given widths: y0 is the first sizes[0] columns, y1 the next, and so on.",
    inputs=(Port("x", ("T", "K"), doc="whole rows"),),
    outputs=(Port("y", ("T", "_K"), doc="parts of the rows", variadic=True),),
    attrs=(Attr("sizes", tuple, "width of each part; their sum is K", required=True),),
    reference=_split,
    work=_work_move,
    check=Check("exact"),
    infer=_infer_split,
    laws=("concat_of_split_is_identity",),
    refusals=(
        Refusal("sizes sum to K", {"x": ("f32", (2, 8))}, {"sizes": (4, 5)}),
        Refusal("sizes are positive", {"x": ("f32", (2, 8))}, {"sizes": (8, 0)}),
    ),
)

OPS = (GATHER_ROWS, CONCAT, SPLIT)
