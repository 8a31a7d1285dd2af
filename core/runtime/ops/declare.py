"""What the declaration of an operation holds, and the catalogue of all of them.

One declaration yields the shape rule, the reference, the fallback on the host, the work model, the judging rule, the
conformance cases and the documentation. `catalogue.add` refuses a declaration that lacks any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from runtime.dtypes import FORMATS, Dim, TensorSpec
from runtime.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    from runtime.ops.rounding import Rounding

Specs = Mapping[str, TensorSpec]
Attrs = Mapping[str, Any]

FLOATS = ("f32", "f16", "bf16", "f64")
"""Formats that an activation may have."""
WEIGHTS = ("*",)
"""Any format of the registry: weights are judged against their exactly decoded values."""
INDEX = ("i32",)


@dataclass(frozen=True)
class Port:
    """An input or output of an operation.

    `shape` names op-local dimensions, e.g. ("T", "K"); the same name must bind to the same size everywhere in one
    node. A leading "..." binds any number of outer dimensions. A variadic port is given as name0, name1, ...; a
    dimension "_K" of such a port may differ from tensor to tensor and binds as K0, K1, ...
    """

    name: str
    shape: tuple[str | int, ...]
    formats: tuple[str, ...] = FLOATS
    doc: str = ""
    optional: bool = False
    variadic: bool = False
    layout: str = "plain"


@dataclass(frozen=True)
class Attr:
    """A constant of a node. `default` None with `required` False means that the attribute may be absent (None).

    Numbers must be finite; `minimum` is the smallest one allowed.
    """

    name: str
    type: type
    doc: str
    default: Any = None
    required: bool = False
    choices: tuple[Any, ...] = ()
    minimum: float | None = None


@dataclass(frozen=True)
class Work:
    """What a node costs: arithmetic operations (a multiply-add is two), bytes it must read, bytes it must write."""

    operations: int
    bytes_read: int
    bytes_written: int

    def __add__(self, other: Work) -> Work:
        return Work(
            self.operations + other.operations,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )


Metric = Literal["statistical", "ulp", "exact", "set", "distribution"]


@dataclass(frozen=True)
class Check:
    """How outputs are judged. Limits belong to the metric, never to a vendor.

    statistical    |z| against the deviation that the declared rounding points give: largest, root mean square, gain
    ulp            elementwise against the correctly rounded value
    exact          bit for bit
    set            same elements, ties in any order
    distribution   exact token for given random numbers, and frequencies over many
    """

    metric: Metric = "statistical"
    max_z: float = 7.0
    rms_z: float = 1.6
    gain_se: float = 6.0
    max_ulp: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """An input that every implementation must refuse: specs and attributes that break a rule, and which rule.

    `rule` says what must hold ("x and weight have the same K").

    Where the specs are fine and the contents break the rule, `values` holds the contents of integer inputs; such an
    input passes `infer` and the reference raises. Inputs that are not in `values` may hold anything, say zeros.
    """

    rule: str
    specs: Mapping[str, tuple[str, tuple[int, ...]]]
    """Input name -> (format name, shape)."""
    attrs: Attrs = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    """Input name -> nested lists of integers."""

    def input_specs(self, op: Op) -> dict[str, TensorSpec]:
        """The specs as `Op.infer_specs` takes them, each in the layout of its port."""
        from runtime.ops.shapes import port_of

        resolved = {}
        for name, (fmt, shape) in self.specs.items():
            port = port_of(op, name)
            resolved[name] = TensorSpec(FORMATS[fmt], shape, port.layout if port else "plain")
        return resolved


Infer = Callable[[Specs, Attrs], tuple[TensorSpec, ...]]
Expand = Callable[[Any, Mapping[str, Any], Attrs], Any]


@dataclass(frozen=True)
class Op:
    """Declaration of one operation; see docs/operations.md for what each of them means.

    reference   (r: Rounding, **inputs, **attrs) -> array or tuple of arrays, in float64. `r(point, x)` marks a
                rounding point; `rounding` lists the points that occur. Integers come as int64. Weights come decoded.
                An input of layout "kv" is float [2, num_blocks, block_size, num_kv_heads, head_dim], changed in place.
    infer       specs of inputs and attributes -> specs of outputs; raises InvalidArgument where a rule is broken.
                None: derived from the ports (where an output may have several formats, it takes that of the first
                input port that is plain and floating; "*" ports do not count). Attributes come with defaults filled in.
    work        resolved input specs, output specs and attributes -> Work.
    expand      for a composite: (builder, inputs: name -> value, attrs) -> output value(s), by smaller operations.
    laws        names of relations that hold without an oracle (conformance has one test for each).
    inplace     output name -> input name that it overwrites.
    """

    name: str
    version: int
    family: str
    doc: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    reference: Callable[..., Any]
    work: Callable[[Specs, Specs, Attrs], Work]
    check: Check
    rounding: tuple[str, ...] = ()
    attrs: tuple[Attr, ...] = ()
    infer: Infer | None = None
    expand: Expand | None = None
    laws: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    inplace: Mapping[str, str] = field(default_factory=dict)
    level: Literal["L0", "L1", "L2", "L3"] = "L1"

    @property
    def key(self) -> str:
        """Name and version, as manifests and graphs write it: `linear@1`."""
        return f"{self.name}@{self.version}"

    @property
    def is_composite(self) -> bool:
        """Whether the operation is defined by a graph of smaller ones."""
        return self.expand is not None

    def infer_specs(self, inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
        """Specs of the outputs; raises InvalidArgument naming the operation, the values and the rule."""
        from runtime.ops.shapes import infer_outputs

        return infer_outputs(self, inputs, attrs)

    def complete_attrs(self, attrs: Attrs) -> dict[str, Any]:
        """`attrs` with defaults for what is absent; attributes without a default stay absent."""
        complete = {a.name: a.default for a in self.attrs} | dict(attrs)
        return {name: value for name, value in complete.items() if value is not None}

    def facts(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> dict[str, Any]:
        """What a manifest rule may ask about a node.

        `<port>.format` for every tensor, `<port>.layout` where it is not plain, the op-local dimensions by name
        (an int, or the name of a symbolic dimension of the graph), `has.<port>` for optional inputs, and every
        attribute by name.
        """
        from runtime.ops.shapes import node_facts

        return node_facts(self, inputs, outputs, attrs)

    def run_reference(self, rounding: Rounding, inputs: Mapping[str, Any], attrs: Attrs) -> tuple[Any, ...]:
        """Run the reference on numpy arrays and return its outputs as a tuple; absent attributes get their defaults.

        Contents that break a rule (an index out of range, say) raise InvalidArgument; shapes are taken as checked.
        """
        import numpy as np

        # infinity and NaN are data here and follow IEEE 754; numpy's warnings about them would reach the user
        with np.errstate(all="ignore"):
            result = self.reference(rounding, **inputs, **self.complete_attrs(attrs))
        return result if isinstance(result, tuple) else (result,)


class Catalogue:
    """All known operations, by key."""

    def __init__(self) -> None:
        self._ops: dict[str, Op] = {}

    def add(self, op: Op) -> Op:
        """Register `op`; a taken key or a missing part is refused."""
        if op.key in self._ops:
            raise InvalidArgument(f"operation {op.key} is already declared")
        if not op.doc.strip() or not op.outputs or not op.refusals:
            raise InvalidArgument(f"operation {op.key} lacks documentation, outputs or an input that must be refused")
        self._ops[op.key] = op
        return op

    def __getitem__(self, key: str) -> Op:
        try:
            return self._ops[key]
        except KeyError:
            raise Unsupported(
                f"operation '{key}' is not in the catalogue", remedy=f"known: {', '.join(sorted(self._ops))}"
            ) from None

    def __contains__(self, key: object) -> bool:
        return key in self._ops

    def __iter__(self) -> Iterator[Op]:
        return iter(self._ops.values())

    def __len__(self) -> int:
        return len(self._ops)


__all__ = [
    "FLOATS",
    "INDEX",
    "WEIGHTS",
    "Attr",
    "Attrs",
    "Catalogue",
    "Check",
    "Dim",
    "Op",
    "Port",
    "Refusal",
    "Specs",
    "Work",
]
