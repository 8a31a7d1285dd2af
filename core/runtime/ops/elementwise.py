"""Elementwise arithmetic: add, mul, softcap, convert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.costs import elementwise, total_nbytes
from runtime.ops.declare import FLOATS, Attr, Attrs, Check, Op, Port, Refusal, Specs, Work
from runtime.ops.rounding import Rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _add(r: Rounding, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    return r("output", a + b)


def _mul(r: Rounding, a: NDArray[Any], b: NDArray[Any] | None = None, scale: float = 1.0) -> NDArray[Any]:
    return r("output", (a if b is None else a * b) * scale)


def _work_mul(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    factors = ("b" in inputs) + (attrs.get("scale", 1.0) != 1.0)
    return elementwise(factors)(inputs, outputs, attrs)


def _softcap(r: Rounding, x: NDArray[Any], cap: float) -> NDArray[Any]:
    import numpy as np

    return r("output", cap * np.tanh(x / cap))


def _infer_softcap(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    if attrs["cap"] <= 0:
        raise InvalidArgument(f"softcap@1 cap = {attrs['cap']} must be greater than 0; leave the node out for no cap")
    return (inputs["x"],)


def _convert(r: Rounding, x: NDArray[Any], format: str) -> NDArray[Any]:
    return Rounding({"output": format}, "nearest")("output", x)


def _infer_convert(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    return (TensorSpec(FORMATS[attrs["format"]], inputs["x"].shape),)


def _work_convert(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    return Work(0, total_nbytes(inputs), total_nbytes(outputs))


ADD = Op(
    name="add",
    version=1,
    family="elementwise",
    doc="y = a + b.",
    inputs=(Port("a", ("T", "K"), doc="first summand"), Port("b", ("T", "K"), doc="second summand")),
    outputs=(Port("y", ("T", "K"), doc="sum, in the format of a"),),
    reference=_add,
    work=elementwise(1),
    check=Check("ulp", max_ulp=1.0),
    rounding=("output",),
    laws=("row_independent", "commutative"),
    refusals=(Refusal("a and b have the same shape", {"a": ("f32", (2, 8)), "b": ("f32", (2, 4))}),),
)

MUL = Op(
    name="mul",
    version=1,
    family="elementwise",
    doc="y = a * b * scale, or a * scale without b.",
    inputs=(
        Port("a", ("T", "K"), doc="first factor"),
        Port("b", ("T", "K"), doc="second factor", optional=True),
    ),
    outputs=(Port("y", ("T", "K"), doc="product, in the format of a"),),
    attrs=(Attr("scale", float, "third factor, the same for all elements", 1.0),),
    reference=_mul,
    work=_work_mul,
    check=Check("ulp", max_ulp=2.0),
    rounding=("output",),
    laws=("row_independent", "commutative"),
    refusals=(
        Refusal("a and b have the same shape", {"a": ("f32", (2, 8)), "b": ("f32", (1, 8))}),
        Refusal("scale is finite", {"a": ("f32", (2, 8))}, {"scale": float("inf")}),
    ),
)

SOFTCAP = Op(
    name="softcap",
    version=1,
    family="elementwise",
    doc="y = cap * tanh(x / cap): leaves small values alone and keeps |y| below cap. (Gemma 2, 2024.)",
    inputs=(Port("x", ("T", "K"), doc="logits or activations"),),
    outputs=(Port("y", ("T", "K"), doc="bounded values"),),
    attrs=(Attr("cap", float, "bound on |y|, greater than 0", required=True),),
    reference=_softcap,
    work=elementwise(3),
    check=Check("ulp", max_ulp=4.0),
    rounding=("output",),
    infer=_infer_softcap,
    laws=("row_independent", "odd", "bounded_by_cap"),
    refusals=(
        Refusal("cap is positive", {"x": ("f32", (2, 8))}, {"cap": 0.0}),
        Refusal("cap is given", {"x": ("f32", (2, 8))}),
    ),
)

CONVERT = Op(
    name="convert",
    version=1,
    family="elementwise",
    doc=(
        "y = x in another plain floating format, rounded to nearest, ties to even; what is too large becomes infinity. "
        "For formats with blocks see quantize."
    ),
    inputs=(Port("x", ("T", "K"), doc="values"),),
    outputs=(Port("y", ("T", "K"), doc="the same values, rounded"),),
    attrs=(Attr("format", str, "format of y", required=True, choices=FLOATS),),
    reference=_convert,
    work=_work_convert,
    check=Check("exact"),
    infer=_infer_convert,
    laws=("row_independent", "idempotent"),
    refusals=(Refusal("the format is plain and floating", {"x": ("f32", (2, 32))}, {"format": "q8_0"}),),
)

OPS = (ADD, MUL, SOFTCAP, CONVERT)
