"""rope: rotary position embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes import TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.checks import check_multiple, fixed
from runtime.ops.costs import total_nbytes
from runtime.ops.declare import INDEX, Attr, Attrs, Check, Op, Port, Refusal, Specs, Work
from runtime.ops.rounding import Rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _reference(
    r: Rounding,
    x: NDArray[Any],
    positions: NDArray[Any],
    inv_freq: NDArray[Any],
    head_dim: int,
    interleaved: bool = False,
    scale: float = 1.0,
) -> NDArray[Any]:
    import numpy as np

    if positions.size and positions.min() < 0:
        raise InvalidArgument(f"rope@1 positions hold {int(positions.min())}; a position is 0 or more")
    angle = r("accumulate", positions[:, None] * inv_freq)[:, None, :]
    cos, sin = r("accumulate", np.cos(angle)) * scale, r("accumulate", np.sin(angle)) * scale
    heads = r("activation", x).reshape(x.shape[0], x.shape[1] // head_dim, head_dim)
    f = inv_freq.shape[0]
    first, second = (slice(0, 2 * f, 2), slice(1, 2 * f, 2)) if interleaved else (slice(0, f), slice(f, 2 * f))
    y = heads.copy()
    y[..., first] = heads[..., first] * cos - heads[..., second] * sin
    y[..., second] = heads[..., second] * cos + heads[..., first] * sin
    return r("output", y.reshape(x.shape))


def _infer(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    head_dim, f = attrs["head_dim"], fixed("rope@1", "F of inv_freq", inputs["inv_freq"].shape[0])
    check_multiple("rope@1", "N of x", inputs["x"].shape[1], head_dim, "x holds whole heads of head_dim elements")
    if 2 * f > head_dim:
        raise InvalidArgument(
            f"rope@1 has {f} frequencies for heads of {head_dim}; each rotates two elements, "
            f"at most {head_dim // 2} fit"
        )
    return (inputs["x"],)


def _work(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    (t, n), (f,) = inputs["x"].resolve({}), inputs["inv_freq"].resolve({})
    rotated = t * (n // attrs["head_dim"]) * 2 * f
    return Work(3 * rotated + 3 * t * f, total_nbytes(inputs), outputs["y"].nbytes())


ROPE = Op(
    name="rope",
    version=1,
    family="position",
    doc=(
        "Rotates pairs of elements of each head by the angle positions[t] * inv_freq[i]: (a, b) becomes "
        "scale * (a cos - b sin, b cos + a sin). The first 2F elements of a head are rotated, the rest passes. Pairs "
        "are (i, i + F), or (2i, 2i + 1) when interleaved. Every way to stretch the context (linear, llama3, yarn, "
        "longrope, frequency factors) is a choice of inv_freq and scale. (Su et al. 2021.)"
    ),
    inputs=(
        Port("x", ("T", "N"), doc="heads of head_dim elements, side by side"),
        Port("positions", ("T",), INDEX, doc="position of each row in its sequence, 0 or more"),
        Port("inv_freq", ("F",), ("f32",), doc="radians per position, F <= head_dim / 2"),
    ),
    outputs=(Port("y", ("T", "N"), doc="rotated heads"),),
    attrs=(
        Attr("head_dim", int, "elements per head", required=True, minimum=2),
        Attr("interleaved", bool, "pairs are (2i, 2i + 1) instead of (i, i + F)", False),
        Attr("scale", float, "factor on cos and sin: the attention factor of YaRN", 1.0),
    ),
    reference=_reference,
    work=_work,
    check=Check("statistical"),
    rounding=("activation", "accumulate", "output"),
    infer=_infer,
    laws=("row_independent", "position_zero_is_identity", "norm_preserving", "scores_depend_on_distance"),
    refusals=(
        Refusal(
            "N is a multiple of head_dim",
            {"x": ("f32", (2, 24)), "positions": ("i32", (2,)), "inv_freq": ("f32", (8,))},
            {"head_dim": 16},
        ),
        Refusal(
            "F is at most head_dim / 2",
            {"x": ("f32", (2, 15)), "positions": ("i32", (2,)), "inv_freq": ("f32", (8,))},
            {"head_dim": 15},
        ),
        Refusal(
            "positions are not negative",
            {"x": ("f32", (2, 16)), "positions": ("i32", (2,)), "inv_freq": ("f32", (8,))},
            {"head_dim": 16},
            values={"positions": [0, -1]},
        ),
    ),
)

OPS = (ROPE,)
