"""linear: the matrix product with a weight in any format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.ops.declare import WEIGHTS, Attrs, Check, Op, Port, Refusal, Specs, Work
from runtime.ops.rounding import Rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _reference(r: Rounding, x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None = None) -> NDArray[Any]:
    y = r.dot(r("activation", x), weight)
    return r("output", y if bias is None else y + bias)


def _work(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    (t, k), (n, _) = inputs["x"].resolve({}), inputs["weight"].resolve({})
    read = sum(spec.nbytes() for spec in inputs.values())
    return Work(2 * t * n * k, read, outputs["y"].nbytes())


LINEAR = Op(
    name="linear",
    version=1,
    family="matmul",
    doc="y = x weight^T + bias. The weight may have any format; it is decoded exactly, so its format adds no error.",
    inputs=(
        Port("x", ("T", "K"), doc="activations, one row per token"),
        Port("weight", ("N", "K"), WEIGHTS, doc="one row per output feature"),
        Port("bias", ("N",), optional=True, doc="added to every row"),
    ),
    outputs=(Port("y", ("T", "N"), doc="one row per token"),),
    reference=_reference,
    work=_work,
    check=Check("statistical"),
    rounding=("activation", "accumulate", "output"),
    laws=("row_independent", "batch_invariant"),
    refusals=(Refusal("x and weight have the same K", {"x": ("f32", (2, 64)), "weight": ("f32", (8, 32))}),),
)

OPS = (LINEAR,)
