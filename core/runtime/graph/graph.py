"""Values, nodes and graphs: one step of a model as data, in single static assignment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from runtime.dtypes import Span, TensorSpec
from runtime.ops import CATALOGUE, Op, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

ValueKind = Literal["input", "weight", "constant", "state", "intermediate"]


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor in a graph; identity is the object.

    input         bound anew for every step
    weight        read from the model's files under `name`, resident on a device
    constant      small data that the graph itself carries (`data`), e.g. the frequencies of a rotary embedding
    state         lives on a device between steps and is overwritten in place: the KV cache of one layer
    intermediate  made by a node, dead after its last use
    """

    name: str
    spec: TensorSpec
    kind: ValueKind
    data: NDArray[Any] | None = None

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}: {self.spec}>"


@dataclass(frozen=True, eq=False)
class Node:
    """One use of an operation: `inputs` by port name, `outputs` in the order of the declaration."""

    name: str
    op: Op
    inputs: Mapping[str, Value]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input_specs(self) -> dict[str, TensorSpec]:
        """Port name -> spec."""
        return {name: value.spec for name, value in self.inputs.items()}

    @property
    def output_specs(self) -> dict[str, TensorSpec]:
        """Port name -> spec; the n-th output of a variadic port `y` is called `y<n>`."""
        ports = self.op.outputs
        if len(ports) == 1 and ports[0].variadic:
            return {f"{ports[0].name}{i}": v.spec for i, v in enumerate(self.outputs)}
        return {port.name: value.spec for port, value in zip(ports, self.outputs, strict=True)}

    def facts(self, dims: Mapping[str, Span]) -> dict[str, Any]:
        """Facts for manifest rules (see `Op.facts`), symbolic dimensions as their `Span`."""
        raw = self.op.facts(self.input_specs, self.output_specs, self.attrs)
        return {k: dims[v] if isinstance(v, str) and v in dims and "." not in k else v for k, v in raw.items()}

    def work(self, dims: Mapping[str, int]) -> Work:
        """Work of this node when symbolic dimensions have the values of `dims`."""

        def resolved(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
            return {n: TensorSpec(s.format, s.resolve(dims), s.layout) for n, s in specs.items()}

        return self.op.work(resolved(self.input_specs), resolved(self.output_specs), self.attrs)

    def __repr__(self) -> str:
        return f"<{self.op.key} {self.name}>"


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in a valid order of execution, with the ranges of all symbolic dimensions.

    The symbolic dimensions of a model's step are T (tokens), S (sequences), Q (= S + 1), P (blocks per sequence),
    R (rows of logits wanted) and B (blocks of the KV cache).
    """

    name: str
    dims: Mapping[str, Span]
    nodes: tuple[Node, ...]
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]
    weights: Mapping[str, Value]
    states: Mapping[str, Value]
    constants: Mapping[str, Value]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


@dataclass(frozen=True, eq=False)
class Region:
    """A run of nodes that one device compiles into one executable.

    `inputs` are step inputs and values made by other regions; `outputs` are values that other regions or the caller
    need; `resident` are the weights, constants and states that must be on the device when it is compiled.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    resident: tuple[Value, ...]
    dims: Mapping[str, Span]


def make_region(name: str, nodes: Sequence[Node], dims: Mapping[str, Span], needed_outside: Sequence[Value]) -> Region:
    """The region of `nodes`: its border follows from which values its nodes use, make, and which are needed outside."""
    made = {v for node in nodes for v in node.outputs}
    used = list(dict.fromkeys(v for node in nodes for v in node.inputs.values()))
    outside = set(needed_outside)
    return Region(
        name=name,
        nodes=tuple(nodes),
        inputs=tuple(v for v in used if v not in made and v.kind in ("input", "intermediate")),
        outputs=tuple(v for node in nodes for v in node.outputs if v in outside),
        resident=tuple(v for v in used if v.kind in ("weight", "constant", "state")),
        dims=dims,
    )


__all__ = ["CATALOGUE", "Graph", "Node", "Region", "Value", "ValueKind", "make_region"]
