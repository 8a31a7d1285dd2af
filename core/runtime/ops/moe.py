"""Mixture of experts: choosing experts for each row, and the matrix products of the chosen ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.checks import check_indices, fixed
from runtime.ops.costs import total_nbytes
from runtime.ops.declare import INDEX, WEIGHTS, Attr, Attrs, Check, Op, Port, Refusal, Specs, Work
from runtime.ops.rounding import Rounding
from runtime.ops.special import sigmoid

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _route(
    r: Rounding,
    logits: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    top_k: int,
    score: str,
    normalize: bool,
    scale: float = 1.0,
) -> tuple[NDArray[Any], NDArray[Any]]:
    import numpy as np

    if score == "softmax":
        scores = _softmax(logits)
    elif score == "sigmoid":
        scores = sigmoid(logits)
    else:
        scores = logits
    scores = r("probability", scores)
    preference = scores if bias is None else scores + bias
    expert_ids = np.argsort(-preference, axis=-1, kind="stable")[:, :top_k].astype(np.int64)
    weights = np.take_along_axis(scores, expert_ids, axis=-1)
    if score == "softmax_selected":
        weights = _softmax(weights)
    elif normalize:
        # as DeepSeek V3: sigmoids that all vanish give weights of zero instead of a division by zero
        weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
    return expert_ids, r("output", weights * scale)


def _softmax(x: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    y: NDArray[Any] = np.exp(x - x.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)
    return y


def _route_infer(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    tokens, experts = inputs["logits"].shape
    top_k = attrs["top_k"]
    if top_k > fixed("moe_route@1", "number of experts", experts):
        raise InvalidArgument(f"moe_route@1 top_k = {top_k} is more than the number of experts, {experts}")
    shape = (tokens, top_k)
    return TensorSpec(FORMATS["i32"], shape), TensorSpec(FORMATS["f32"], shape)


def _route_work(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    # per element: exponential, sum, division, and one comparison for each choice
    tokens, experts = inputs["logits"].resolve({})
    read = total_nbytes(inputs)
    return Work(tokens * experts * (3 + attrs["top_k"]), read, total_nbytes(outputs))


def _linear(
    r: Rounding,
    x: NDArray[Any],
    weight: NDArray[Any],
    expert_ids: NDArray[Any],
    bias: NDArray[Any] | None = None,
    expert_weights: NDArray[Any] | None = None,
    *,
    per_expert_input: bool = False,
) -> NDArray[Any]:
    import numpy as np

    tokens, top_k = expert_ids.shape
    num_experts, n, k = weight.shape
    check_indices("moe_linear@1", "expert_ids", expert_ids, num_experts, what="experts")
    x = r("activation", x)
    rows = x.reshape(tokens * top_k, k) if per_expert_input else x
    chosen = expert_ids.reshape(-1)
    y = np.empty((tokens * top_k, n))
    for expert in np.unique(chosen):
        pairs = np.nonzero(chosen == expert)[0]
        y[pairs] = r.dot(rows[pairs if per_expert_input else pairs // top_k], weight[expert])
        if bias is not None:
            y[pairs] += bias[expert]
    if expert_weights is None:
        return r("output", y.reshape(tokens, top_k * n))
    weighted = r("accumulate", y).reshape(tokens, top_k, n) * expert_weights[:, :, None]
    return r("output", weighted.sum(axis=1))


def _linear_infer(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    x = inputs["x"]
    tokens = inputs["expert_ids"].shape[0]
    n, k = (fixed("moe_linear@1", name, size) for name, size in zip("NK", inputs["weight"].shape[1:]))
    top_k = fixed("moe_linear@1", "k of expert_ids", inputs["expert_ids"].shape[1])
    per_expert = attrs["per_expert_input"]
    expected = top_k * k if per_expert else k
    if x.shape[1] != expected:
        runs = f"{top_k} runs of K = {k}" if per_expert else f"K = {k}"
        raise InvalidArgument(f"moe_linear@1 input 'x' is {x}; with per_expert_input {per_expert} a row holds {runs}")
    return (TensorSpec(x.format, (tokens, n if "expert_weights" in inputs else top_k * n)),)


def _linear_work(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    # experts that no row has chosen are not read: at most one per (row, choice)
    experts, n, k = inputs["weight"].resolve({})
    tokens, top_k = inputs["expert_ids"].resolve({})
    used = min(experts, tokens * top_k)
    operations = 2 * tokens * top_k * n * k
    if "expert_weights" in inputs:
        operations += 2 * tokens * top_k * n
    read = sum(spec.nbytes() for name, spec in inputs.items() if name not in ("weight", "bias"))
    read += inputs["weight"].format.nbytes((used, n, k))
    if "bias" in inputs:
        read += inputs["bias"].format.nbytes((used, n))
    return Work(operations, read, outputs["y"].nbytes())


MOE_ROUTE = Op(
    name="moe_route",
    version=1,
    family="moe",
    doc=(
        "The top_k experts of each row, the most preferred first (the lower id among equals), and their weights. "
        "Scores are the softmax of the logits, their sigmoid, or (softmax_selected) the logits themselves with a "
        "softmax over the chosen ones. `bias` is added to the scores for the choice only (DeepSeek V3, arXiv "
        "2412.19437, section 2.1.2). `normalize` divides the chosen scores by their sum; `scale` multiplies last."
    ),
    inputs=(
        Port("logits", ("T", "E"), doc="router's output, one column per expert"),
        Port("bias", ("E",), doc="added for the choice, not to the weights", optional=True),
    ),
    outputs=(
        Port("expert_ids", ("T", "k"), INDEX, "chosen experts"),
        Port("expert_weights", ("T", "k"), ("f32",), "their shares"),
    ),
    reference=_route,
    infer=_route_infer,
    work=_route_work,
    check=Check("set"),
    rounding=("probability", "output"),
    attrs=(
        Attr("top_k", int, "experts per row", required=True, minimum=1),
        Attr(
            "score",
            str,
            "what turns logits into scores",
            required=True,
            choices=("softmax", "sigmoid", "softmax_selected"),
        ),
        Attr("normalize", bool, "whether the weights of a row sum to `scale`", required=True),
        Attr("scale", float, "factor of the weights", 1.0),
    ),
    laws=("row_independent", "batch_invariant"),
    refusals=(
        Refusal(
            "top_k is at most E",
            {"logits": ("f32", (2, 4))},
            {"top_k": 5, "score": "softmax", "normalize": True},
        ),
    ),
    level="L2",
)

MOE_LINEAR = Op(
    name="moe_linear",
    version=1,
    family="moe",
    doc=(
        "linear with the weights of each row's chosen experts: y holds one run of N per chosen expert or, when "
        "expert_weights are given, their weighted sum. With per_expert_input, x holds one run of K per chosen "
        "expert (the second product of an expert), otherwise all of them read the same K elements."
    ),
    inputs=(
        Port("x", ("T", "X"), doc="X = K, or k K with per_expert_input"),
        Port("weight", ("E", "N", "K"), WEIGHTS, "one matrix per expert"),
        Port("expert_ids", ("T", "k"), INDEX, "from moe_route"),
        Port("bias", ("E", "N"), doc="one per expert", optional=True),
        Port("expert_weights", ("T", "k"), doc="from moe_route; combines the experts", optional=True),
    ),
    outputs=(Port("y", ("T", "Y"), doc="Y = k N, or N with expert_weights"),),
    reference=_linear,
    infer=_linear_infer,
    work=_linear_work,
    check=Check("statistical"),
    rounding=("activation", "accumulate", "output"),
    attrs=(Attr("per_expert_input", bool, "whether x holds one run of K per chosen expert", False),),
    laws=("row_independent", "batch_invariant"),
    refusals=(
        Refusal(
            "x holds k K elements with per_expert_input",
            {"x": ("f32", (2, 64)), "weight": ("f32", (4, 32, 64)), "expert_ids": ("i32", (2, 2))},
            {"per_expert_input": True},
        ),
        Refusal(
            "chosen experts exist",
            {"x": ("f32", (2, 64)), "weight": ("f32", (4, 32, 64)), "expert_ids": ("i32", (2, 2))},
            values={"expert_ids": [[0, 1], [2, 4]]},
        ),
    ),
    level="L2",
)

OPS: tuple[Op, ...] = (MOE_ROUTE, MOE_LINEAR)
