"""quantize and dequantize: activations into block formats, and tensors of any format back to floats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import InvalidArgument, Unsupported
from runtime.ops.checks import check_multiple
from runtime.ops.costs import elementwise
from runtime.ops.declare import FLOATS, WEIGHTS, Attr, Attrs, Check, Op, Port, Refusal, Specs
from runtime.ops.rounding import Rounding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def _quantize(r: Rounding, x: NDArray[Any], *, format: str) -> NDArray[np.uint8]:
    import numpy as np

    from runtime.dtypes.encode import encode

    encoded = encode(FORMATS[format], x.astype(np.float32))
    return np.frombuffer(encoded, dtype=np.uint8).reshape(*x.shape[:-1], -1)


def _quantize_infer(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    from runtime.dtypes.encode import can_encode

    fmt = FORMATS[attrs["format"]]
    if not fmt.is_quantized:
        raise InvalidArgument(
            f"quantize@1 format = '{fmt.name}' is a plain format: elements share no scale; use convert"
        )
    if not can_encode(fmt):
        known = ", ".join(f.name for f in FORMATS if f.is_quantized and can_encode(f))
        raise Unsupported(f"quantize@1 cannot encode {fmt.name}", remedy=f"formats with an encoder: {known}")
    x = inputs["x"]
    check_multiple("quantize@1", "K of x", x.shape[1], fmt.group_size, f"{fmt.name} has one scale for so many elements")
    return (TensorSpec(fmt, x.shape),)


def _dequantize(r: Rounding, x: NDArray[Any], *, format: str = "f32") -> NDArray[Any]:
    return r("output", x)


def _dequantize_infer(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    return (TensorSpec(FORMATS[attrs["format"]], inputs["x"].shape),)


QUANTIZE = Op(
    name="quantize",
    version=1,
    family="quantization",
    doc=(
        "x in a block format. The bytes are those of the encoder that the format has in this runtime, so that two "
        "devices that quantise the same numbers agree."
    ),
    inputs=(Port("x", ("T", "K"), doc="K a multiple of the format's group size; finite"),),
    outputs=(Port("y", ("T", "K"), WEIGHTS, "x, encoded"),),
    reference=_quantize,
    infer=_quantize_infer,
    work=elementwise(1),
    check=Check("exact"),
    attrs=(Attr("format", str, "name of a block format that has an encoder", required=True),),
    laws=("row_independent", "batch_invariant"),
    refusals=(
        Refusal("K is a multiple of the group size", {"x": ("f32", (2, 33))}, {"format": "q8_0"}),
        Refusal("the format has blocks", {"x": ("f32", (2, 32))}, {"format": "f16"}),
    ),
    level="L2",
)

DEQUANTIZE = Op(
    name="dequantize",
    version=1,
    family="quantization",
    doc="The exact values that x stands for, rounded once to `format`.",
    inputs=(Port("x", ("T", "K"), WEIGHTS, "values in any format"),),
    outputs=(Port("y", ("T", "K"), doc="the same values, decoded"),),
    reference=_dequantize,
    infer=_dequantize_infer,
    work=elementwise(1),
    # a scale times an integer plus a minimum may be rounded once more on the way
    check=Check("ulp", max_ulp=1.0),
    rounding=("output",),
    attrs=(Attr("format", str, "format of y", "f32", choices=FLOATS),),
    laws=("row_independent", "batch_invariant"),
    refusals=(Refusal("y is floating", {"x": ("f32", (2, 32))}, {"format": "i8"}),),
    level="L2",
)

OPS: tuple[Op, ...] = (QUANTIZE, DEQUANTIZE)
