"""A space of cases: the factors of an operation, and how a row of their values becomes a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.ops import CATALOGUE, Op, Port
from runtime_conformance.case import Case, Tensor

Params = Mapping[str, Any]
Build = Callable[[Params], "Case | None"]

FLOAT_FORMATS = ("f32", "f16", "bf16")
X_DATA: dict[str, tuple[Any, ...]] = {
    "normal": ("normal",),
    "outlier": ("outlier",),
    "wide": ("wide",),
    "denormal": ("denormal",),
    "nonfinite": ("nonfinite",),
    "cancel": ("cancel",),
    "exact": ("integers",),
    "exact_sparse": ("sparse",),
}
"""Kind of data -> filler of activations."""
PLAIN_KINDS = ("normal", "outlier", "wide", "denormal", "nonfinite", "exact")


@dataclass(frozen=True)
class Space:
    """Factors of an operation.

    domains   factor -> values; names are those of manifest facts (dimensions, attributes, `x.format`, `has.bias`), and
              "kind" for the kind of data
    build     row -> case, or None where the combination is impossible
    models    rows taken from real models, with the name of the model under "model"
    """

    op: str
    domains: Mapping[str, tuple[Any, ...]]
    build: Build
    models: tuple[Mapping[str, Any], ...] = field(default=())


def make_case(
    op_key: str, params: Params, data: Mapping[str, tuple[Any, ...]] | None = None, kind: str | None = None
) -> Case:
    """A case out of `params`: sizes by dimension, formats, presence of optional inputs, attributes.

    data   input -> filler, where it is not the kind of data of the case
    """
    op = CATALOGUE[op_key]
    chosen = kind or params.get("kind", "normal")
    inputs: dict[str, Tensor] = {}
    for port in op.inputs:
        if port.optional and not params.get(f"has.{port.name}", False):
            continue
        inputs[port.name] = _tensor(op, port, params, (data or {}).get(port.name), chosen)
    attrs = {a.name: params[a.name] for a in op.attrs if params.get(a.name) is not None}
    return Case(op_key, inputs, attrs, chosen.removesuffix("_sparse"), note=str(params.get("model", "")))


def _tensor(op: Op, port: Port, params: Params, filler: tuple[Any, ...] | None, kind: str) -> Tensor:
    shape = tuple(s if isinstance(s, int) else int(params[s]) for s in port.shape)
    is_weight = "*" in port.formats and port.layout == "plain"
    default = "i32" if port.formats == ("i32",) else "f32"
    fmt = params.get(f"{port.name}.format", default)
    role = "weight" if is_weight else "state" if port.layout == "kv" else "input"
    if filler is None:
        filler = X_DATA.get(kind, ("normal",)) if len(shape) > 1 else ("normal", 0.25, 1.0)
    return Tensor(fmt, shape, role, filler, port.layout)  # type: ignore[arg-type]  # one of three literals
