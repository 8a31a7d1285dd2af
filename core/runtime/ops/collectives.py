"""Collectives, seen over all ranks at once: x0, x1, ... are what each rank has, y0, y1, ... what each rank gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runtime.dtypes import Dim, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.costs import total_nbytes
from runtime.ops.declare import Attr, Attrs, Check, Op, Port, Refusal, Specs, Work
from runtime.ops.rounding import Rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = list[NDArray[Any]]


def _by_rank(x: dict[str, NDArray[Any]]) -> Arrays:
    return [x[f"x{rank}"] for rank in range(len(x))]


def _all_reduce(r: Rounding, **x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    total = r("output", _sum(r, _by_rank(x)))
    return tuple(total.copy() for _ in x)


def _reduce_scatter(r: Rounding, *, axis: int = 1, **x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    import numpy as np

    return tuple(np.split(r("output", _sum(r, _by_rank(x))), len(x), axis))


def _sum(r: Rounding, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    total = parts[0]
    for part in parts[1:]:
        total = r("accumulate", total + part)
    return total


def _all_gather(r: Rounding, *, axis: int = 1, **x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    import numpy as np

    return tuple(np.concatenate(_by_rank(x), axis) for _ in x)


def _all_to_all(r: Rounding, *, axis: int = 1, **x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    import numpy as np

    parts = [np.split(part, len(x), axis) for part in _by_rank(x)]
    return tuple(np.concatenate([parts[source][rank] for source in range(len(x))], axis) for rank in range(len(x)))


def _broadcast(r: Rounding, *, root: int = 0, **x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    return tuple(x[f"x{root}"].copy() for _ in x)


def _transfer(r: Rounding, *, src: int, dst: int, **x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    parts = _by_rank(x)
    parts[dst] = parts[src]
    return tuple(part.copy() for part in parts)


def _ranks(name: str, inputs: Specs) -> tuple[int, TensorSpec]:
    """Number of ranks, and the spec that they share."""
    formats = {spec.format.name for spec in inputs.values()}
    if len(formats) > 1:
        raise InvalidArgument(f"{name}@1 has inputs in {', '.join(sorted(formats))}; all ranks must use one format")
    return len(inputs), inputs["x0"]


def _same(name: str) -> Callable[[Specs, Attrs], tuple[TensorSpec, ...]]:
    """Every rank gets a tensor of the shape that it gave; attributes that name ranks must name existing ones."""

    def infer(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
        ranks, spec = _ranks(name, inputs)
        for attr in ("root", "src", "dst"):
            if attr in attrs and not 0 <= attrs[attr] < ranks:
                raise InvalidArgument(f"{name}@1 {attr} = {attrs[attr]}, there are ranks 0 to {ranks - 1}")
        return (spec,) * ranks

    return infer


def _all_gather_infer(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    ranks, spec = _ranks("all_gather", inputs)
    size = _size("all_gather", spec, attrs)
    return (_resized(spec, attrs, size * ranks),) * ranks


def _parted(name: str) -> Callable[[Specs, Attrs], tuple[int, TensorSpec, int]]:
    def parted(inputs: Specs, attrs: Attrs) -> tuple[int, TensorSpec, int]:
        ranks, spec = _ranks(name, inputs)
        size = _size(name, spec, attrs)
        if size % ranks:
            raise InvalidArgument(
                f"{name}@1 inputs are {spec}; {size} cannot be divided among {ranks} ranks in equal parts"
            )
        return ranks, spec, size

    return parted


def _reduce_scatter_infer(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    ranks, spec, size = _parted("reduce_scatter")(inputs, attrs)
    return (_resized(spec, attrs, size // ranks),) * ranks


def _all_to_all_infer(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    ranks, spec, _ = _parted("all_to_all")(inputs, attrs)
    return (spec,) * ranks


def _size(name: str, spec: TensorSpec, attrs: Attrs) -> int:
    size = spec.shape[attrs["axis"]]
    if not isinstance(size, int):
        raise InvalidArgument(
            f"{name}@1 inputs are {spec}; the size of axis {attrs.get('axis', 1)} must be known, it is symbolic"
        )
    return size


def _resized(spec: TensorSpec, attrs: Attrs, size: int) -> TensorSpec:
    shape: list[Dim] = list(spec.shape)
    shape[attrs["axis"]] = size
    return TensorSpec(spec.format, tuple(shape), spec.layout)


def _moved(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    return Work(0, total_nbytes(inputs), total_nbytes(outputs))


def _summed(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    rows, columns = inputs["x0"].resolve({})
    return Work((len(inputs) - 1) * rows * columns, 0, 0) + _moved(inputs, outputs, attrs)


def _of_one(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    one = inputs["x0"].nbytes()
    receivers = 1 if "dst" in attrs else len(outputs) - 1
    return Work(0, one, receivers * one)


_X = Port("x", ("T", "K"), doc="what each rank has; the same shape on all of them", variadic=True)
_Y = Port("y", ("U", "V"), doc="what each rank gets", variadic=True)
_AXIS = Attr("axis", int, "0: rows, 1: columns", 1, choices=(0, 1))
_PAIR = {"x0": ("f32", (4, 64)), "x1": ("f32", (4, 64))}
_ODD = {"x0": ("f32", (4, 63)), "x1": ("f32", (4, 63))}
_UNLIKE = Refusal("all ranks have the same shape", {"x0": ("f32", (4, 64)), "x1": ("f32", (4, 32))})

ALL_REDUCE = Op(
    name="all_reduce",
    version=1,
    family="collective",
    doc="Every rank gets the sum over all ranks.",
    inputs=(_X,),
    outputs=(_Y,),
    reference=_all_reduce,
    infer=_same("all_reduce"),
    work=_summed,
    check=Check("statistical"),
    rounding=("accumulate", "output"),
    refusals=(_UNLIKE,),
    laws=("one_rank_is_the_identity",),
    level="L3",
)

ALL_GATHER = Op(
    name="all_gather",
    version=1,
    family="collective",
    doc="Every rank gets the tensors of all ranks, joined along `axis` in the order of ranks.",
    inputs=(_X,),
    outputs=(_Y,),
    reference=_all_gather,
    infer=_all_gather_infer,
    work=_moved,
    check=Check("exact"),
    attrs=(_AXIS,),
    refusals=(_UNLIKE,),
    laws=("one_rank_is_the_identity",),
    level="L3",
)

REDUCE_SCATTER = Op(
    name="reduce_scatter",
    version=1,
    family="collective",
    doc="Rank i gets the i-th part along `axis` of the sum over all ranks.",
    inputs=(_X,),
    outputs=(_Y,),
    reference=_reduce_scatter,
    infer=_reduce_scatter_infer,
    work=_summed,
    check=Check("statistical"),
    rounding=("accumulate", "output"),
    attrs=(_AXIS,),
    refusals=(_UNLIKE, Refusal("parts are equal", _ODD)),
    laws=("one_rank_is_the_identity",),
    level="L3",
)

ALL_TO_ALL = Op(
    name="all_to_all",
    version=1,
    family="collective",
    doc="Rank i gets the i-th part along `axis` of every rank's tensor, joined in the order of ranks.",
    inputs=(_X,),
    outputs=(_Y,),
    reference=_all_to_all,
    infer=_all_to_all_infer,
    work=_moved,
    check=Check("exact"),
    attrs=(_AXIS,),
    refusals=(_UNLIKE, Refusal("parts are equal", _ODD)),
    laws=("one_rank_is_the_identity",),
    level="L3",
)

BROADCAST = Op(
    name="broadcast",
    version=1,
    family="collective",
    doc="Every rank gets the tensor of rank `root`.",
    inputs=(_X,),
    outputs=(_Y,),
    reference=_broadcast,
    infer=_same("broadcast"),
    work=_of_one,
    check=Check("exact"),
    attrs=(Attr("root", int, "the rank that gives", 0),),
    refusals=(_UNLIKE, Refusal("root is a rank", _PAIR, {"root": 2})),
    laws=("one_rank_is_the_identity",),
    level="L3",
)


def _half_of_transfer(name: str, doc: str) -> Op:
    return Op(
        name=name,
        version=1,
        family="collective",
        doc=doc,
        inputs=(_X,),
        outputs=(_Y,),
        reference=_transfer,
        infer=_same(name),
        work=_of_one,
        check=Check("exact"),
        attrs=(
            Attr("src", int, "the rank that gives", required=True),
            Attr("dst", int, "the rank that gets", required=True),
        ),
        refusals=(
            replace(_UNLIKE, attrs={"src": 0, "dst": 1}),
            Refusal("dst is a rank", _PAIR, {"src": 0, "dst": 2}),
            Refusal("src is not negative", _PAIR, {"src": -1, "dst": 1}),
        ),
        laws=("one_rank_is_the_identity",),
        level="L3",
    )


SEND = _half_of_transfer("send", "Rank `dst` gets the tensor of rank `src`, seen from src; others keep their own.")
RECV = _half_of_transfer("recv", "Rank `dst` gets the tensor of rank `src`, seen from dst; others keep their own.")

OPS: tuple[Op, ...] = (ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, BROADCAST, SEND, RECV)
