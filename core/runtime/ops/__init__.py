"""The catalogue of operations: one file per family, one declaration per operation."""

from runtime.ops.declare import FLOATS, INDEX, WEIGHTS, Attr, Catalogue, Check, Op, Port, Refusal, Work
from runtime.ops.linear import LINEAR
from runtime.ops.rounding import EXACT, Rounding

CATALOGUE = Catalogue()
"""Every operation of this version."""

for _op in (LINEAR,):
    CATALOGUE.add(_op)

__all__ = [
    "CATALOGUE",
    "EXACT",
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
