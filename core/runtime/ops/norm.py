"""Normalisation: rms_norm and layer_norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes import TensorSpec
from runtime.ops.checks import check_multiple
from runtime.ops.costs import elementwise
from runtime.ops.declare import Attr, Attrs, Check, Op, Port, Refusal, Specs
from runtime.ops.rounding import Rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EPS = Attr("eps", float, "added to the mean square or variance", required=True, minimum=0.0)


def _rms_norm(
    r: Rounding, x: NDArray[Any], weight: NDArray[Any], eps: float, weight_offset: float = 0.0
) -> NDArray[Any]:
    import numpy as np

    d = weight.shape[0]
    runs = r("activation", x).reshape(x.shape[0], x.shape[1] // d, d)
    mean_square = r.sum(runs * runs) / d
    y = runs / np.sqrt(mean_square + eps) * (weight + weight_offset)
    return r("output", y.reshape(x.shape))


def _infer_rms_norm(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    x, weight = inputs["x"], inputs["weight"]
    check_multiple(
        "rms_norm@1", "K of x", x.shape[1], weight.shape[0], "each run of D elements is normalised by itself"
    )
    return (x,)


def _layer_norm(
    r: Rounding, x: NDArray[Any], weight: NDArray[Any], eps: float, bias: NDArray[Any] | None = None
) -> NDArray[Any]:
    import numpy as np

    x = r("activation", x)
    k = x.shape[-1]
    centred = r("accumulate", x - r.sum(x) / k)
    y = centred / np.sqrt(r.sum(centred * centred) / k + eps) * weight
    return r("output", y if bias is None else y + bias)


RMS_NORM = Op(
    name="rms_norm",
    version=1,
    family="norm",
    doc=(
        "y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset). Each run of D elements of a row is normalised by "
        "itself: D = K for a layer's norm, D = head_dim for the norms of queries and keys. (Zhang and Sennrich 2019.)"
    ),
    inputs=(
        Port("x", ("T", "K"), doc="activations, K a multiple of D"),
        Port("weight", ("D",), doc="gain of each element of a run"),
    ),
    outputs=(Port("y", ("T", "K"), doc="normalised activations"),),
    attrs=(_EPS, Attr("weight_offset", float, "added to the weight; 1 where the files store gain - 1 (gemma)", 0.0)),
    reference=_rms_norm,
    work=elementwise(4),
    check=Check("statistical"),
    rounding=("activation", "accumulate", "output"),
    infer=_infer_rms_norm,
    laws=("row_independent", "batch_invariant", "scale_invariant"),
    refusals=(
        Refusal("K is a multiple of D", {"x": ("f32", (2, 96)), "weight": ("f32", (64,))}, {"eps": 1e-5}),
        Refusal("eps is not negative", {"x": ("f32", (2, 64)), "weight": ("f32", (64,))}, {"eps": -1.0}),
        Refusal("eps is given", {"x": ("f32", (2, 64)), "weight": ("f32", (64,))}),
    ),
)

LAYER_NORM = Op(
    name="layer_norm",
    version=1,
    family="norm",
    doc="y = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, per row; the variance is divided by K. "
    "(Ba, Kiros and Hinton 2016.)",
    inputs=(
        Port("x", ("T", "K"), doc="activations"),
        Port("weight", ("K",), doc="gain"),
        Port("bias", ("K",), doc="added after the gain", optional=True),
    ),
    outputs=(Port("y", ("T", "K"), doc="normalised activations"),),
    attrs=(_EPS,),
    reference=_layer_norm,
    work=elementwise(7),
    check=Check("statistical"),
    rounding=("activation", "accumulate", "output"),
    laws=("row_independent", "batch_invariant", "shift_invariant"),
    refusals=(
        Refusal("weight has K elements", {"x": ("f32", (2, 64)), "weight": ("f32", (32,))}, {"eps": 1e-5}),
        Refusal("eps is not negative", {"x": ("f32", (2, 64)), "weight": ("f32", (64,))}, {"eps": -1e-5}),
    ),
)

OPS = (RMS_NORM, LAYER_NORM)
