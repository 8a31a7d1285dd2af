"""embed: rows of the embedding table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.ops.checks import check_indices
from runtime.ops.costs import rows_nbytes
from runtime.ops.declare import INDEX, WEIGHTS, Attr, Attrs, Check, Op, Port, Refusal, Specs, Work
from runtime.ops.rounding import Rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _reference(r: Rounding, token_ids: NDArray[Any], weight: NDArray[Any], scale: float = 1.0) -> NDArray[Any]:
    check_indices("embed@1", "token_ids", token_ids, weight.shape[0], what="rows in the table")
    return r("output", weight[token_ids] * scale)


def _work(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    (t,) = inputs["token_ids"].resolve({})
    read = inputs["token_ids"].nbytes() + rows_nbytes(inputs["weight"], t)
    size = outputs["x"].resolve({})[1] * t
    return Work(0 if attrs.get("scale", 1.0) == 1.0 else size, read, outputs["x"].nbytes())


EMBED = Op(
    name="embed",
    version=1,
    family="embedding",
    doc="x[t] = weight[token_ids[t]] * scale. The table may have any format; its rows are decoded exactly.",
    inputs=(
        Port("token_ids", ("T",), INDEX, doc="one token per row, each in 0 .. V-1"),
        Port("weight", ("V", "K"), WEIGHTS, doc="embedding table, one row per token of the vocabulary"),
    ),
    outputs=(Port("x", ("T", "K"), ("f32",), doc="embeddings"),),
    attrs=(Attr("scale", float, "factor on every element; gemma uses sqrt(hidden_size)", 1.0),),
    reference=_reference,
    work=_work,
    check=Check("ulp", max_ulp=1.0),
    rounding=("output",),
    laws=("row_independent", "repeated_tokens_give_equal_rows"),
    refusals=(
        Refusal("token_ids are integers", {"token_ids": ("f32", (2,)), "weight": ("f32", (8, 4))}),
        Refusal(
            "token_ids are below V",
            {"token_ids": ("i32", (2,)), "weight": ("f32", (8, 4))},
            values={"token_ids": [0, 8]},
        ),
        Refusal(
            "token_ids are not negative",
            {"token_ids": ("i32", (2,)), "weight": ("f32", (8, 4))},
            values={"token_ids": [-1, 0]},
        ),
    ),
)

OPS = (EMBED,)
