"""The catalogue of operations: one file per family, one declaration per operation."""

from runtime.ops import (
    activation,
    attention,
    collectives,
    composites,
    elementwise,
    embed,
    kv,
    linear,
    moe,
    movement,
    norm,
    quantization,
    reduction,
    rope,
    sampling,
)
from runtime.ops.declare import FLOATS, INDEX, WEIGHTS, Attr, Catalogue, Check, Op, Port, Refusal, Work
from runtime.ops.rounding import EXACT, Rounding

FAMILIES = (
    *(embed, linear, norm, rope, attention, kv, activation, elementwise, movement, reduction),
    *(quantization, sampling, moe, collectives, composites),
)
"""Modules that hold declarations, in the order of docs/operations.md; each has `OPS: tuple[Op, ...]`."""

CATALOGUE = Catalogue()
"""Every operation of this version."""

for _family in FAMILIES:
    for _op in _family.OPS:
        CATALOGUE.add(_op)

__all__ = [
    "CATALOGUE",
    "EXACT",
    "FAMILIES",
    "FLOATS",
    "INDEX",
    "WEIGHTS",
    "Attr",
    "Catalogue",
    "Check",
    "Op",
    "Port",
    "Refusal",
    "Rounding",
    "Work",
]
