"""Nonlinearities of feed-forward networks: activation and glu."""

from __future__ import annotations

from math import pi, sqrt
from typing import TYPE_CHECKING, Any

from runtime.dtypes import TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.costs import elementwise
from runtime.ops.declare import Attr, Attrs, Check, Op, Port, Refusal, Specs
from runtime.ops.rounding import Rounding
from runtime.ops.special import erf, sigmoid

if TYPE_CHECKING:
    from numpy.typing import NDArray

ACTIVATION_KINDS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "quick_gelu")
GLU_KINDS = ("silu", "gelu", "gelu_tanh", "swiglu_oai")


def _apply(r: Rounding, kind: str, x: NDArray[Any]) -> NDArray[Any]:
    """`accumulate` marks what a kernel holds in registers: where 1 + tanh cancels, its rounding is what one sees."""
    import numpy as np

    y: NDArray[Any]
    if kind == "silu":
        y = x * _sigmoid(r, x)
    elif kind == "gelu":
        y = 0.5 * x * _plus_one(r, erf(r("accumulate", x / sqrt(2))))
    elif kind == "gelu_tanh":
        inner = r("accumulate", sqrt(2 / pi) * (x + 0.044715 * x * x * x))
        y = 0.5 * x * _plus_one(r, np.tanh(inner))
    elif kind == "quick_gelu":
        y = x * _sigmoid(r, r("accumulate", 1.702 * x))
    elif kind == "sigmoid":
        y = _sigmoid(r, x)
    elif kind == "tanh":
        y = r("accumulate", np.tanh(r("accumulate", x)))
    else:
        y = np.maximum(x, 0.0)
        y = y * y if kind == "relu2" else y
    return y


def _plus_one(r: Rounding, t: NDArray[Any]) -> NDArray[Any]:
    """1 + t for t from -1 to 1, as a kernel that holds t has it.

    Where float64 has no digits left, a kernel may still have some (of a sigmoid, say): t is never free of rounding.
    """
    import numpy as np

    inside = np.maximum(t, np.nextafter(-1.0, 0.0))
    y: NDArray[Any] = np.maximum(1.0 + t + (r("accumulate", inside) - inside), 0.0)
    return y


def _sigmoid(r: Rounding, x: NDArray[Any]) -> NDArray[Any]:
    # a kernel's exp first scales its argument, which costs one rounding
    return r("accumulate", sigmoid(r("accumulate", x)))


def _activation(r: Rounding, x: NDArray[Any], kind: str) -> NDArray[Any]:
    return r("output", _apply(r, kind, r("activation", x)))


def _glu(
    r: Rounding, gate: NDArray[Any], up: NDArray[Any], kind: str, alpha: float = 1.702, limit: float = 7.0
) -> NDArray[Any]:
    import numpy as np

    gate, up = r("activation", gate), r("activation", up)
    if kind != "swiglu_oai":
        return r("output", _apply(r, kind, gate) * up)
    gate = np.minimum(gate, limit)
    up = np.clip(up, -limit, limit)
    return r("output", gate * _sigmoid(r, r("accumulate", alpha * gate)) * r("accumulate", up + 1.0))


def _infer_glu(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    if attrs["limit"] <= 0:
        raise InvalidArgument(f"glu@1 limit = {attrs['limit']} must be greater than 0; it bounds gate and up")
    return (inputs["gate"],)


ACTIVATION = Op(
    name="activation",
    version=1,
    family="activation",
    doc=(
        "Elementwise nonlinearity. silu: x sigmoid(x). gelu: x/2 (1 + erf(x / sqrt 2)). gelu_tanh: "
        "x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). quick_gelu: x sigmoid(1.702 x). relu: max(x, 0). relu2: its "
        "square. sigmoid and tanh as they are. (Hendrycks and Gimpel 2016; So et al. 2021 for relu2.)"
    ),
    inputs=(Port("x", ("T", "K"), doc="activations"),),
    outputs=(Port("y", ("T", "K"), doc="the function of each element"),),
    attrs=(Attr("kind", str, "which function", required=True, choices=ACTIVATION_KINDS),),
    reference=_activation,
    work=elementwise(5),
    check=Check("statistical"),
    rounding=("activation", "accumulate", "output"),
    laws=("row_independent", "elementwise"),
    refusals=(
        Refusal("the kind is known", {"x": ("f32", (2, 8))}, {"kind": "mish"}),
        Refusal("the kind is given", {"x": ("f32", (2, 8))}),
    ),
)

GLU = Op(
    name="glu",
    version=1,
    family="activation",
    doc=(
        "Gated linear unit: y = kind(gate) * up, the kinds as in activation. swiglu_oai (gpt-oss): gate is bounded "
        "from above by limit, up from both sides, and y = gate sigmoid(alpha gate) * (up + 1). (Shazeer 2020.)"
    ),
    inputs=(
        Port("gate", ("T", "K"), doc="goes through the nonlinearity"),
        Port("up", ("T", "K"), doc="is multiplied by it"),
    ),
    outputs=(Port("y", ("T", "K"), doc="gated values"),),
    attrs=(
        Attr("kind", str, "nonlinearity of the gate", required=True, choices=GLU_KINDS),
        Attr("alpha", float, "slope inside the sigmoid of swiglu_oai; others ignore it", 1.702),
        Attr("limit", float, "bound on gate and up of swiglu_oai; others ignore it", 7.0),
    ),
    reference=_glu,
    work=elementwise(6),
    check=Check("statistical"),
    rounding=("activation", "accumulate", "output"),
    infer=_infer_glu,
    laws=("row_independent", "elementwise"),
    refusals=(
        Refusal("gate and up have the same shape", {"gate": ("f32", (2, 8)), "up": ("f32", (2, 4))}, {"kind": "silu"}),
        Refusal("the kind is known", {"gate": ("f32", (2, 8)), "up": ("f32", (2, 8))}, {"kind": "relu"}),
        Refusal(
            "limit is positive",
            {"gate": ("f32", (2, 8)), "up": ("f32", (2, 8))},
            {"kind": "swiglu_oai", "limit": 0.0},
        ),
    ),
)

OPS = (ACTIVATION, GLU)
