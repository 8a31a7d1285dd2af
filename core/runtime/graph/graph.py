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

    @property
    def overwrites(self) -> dict[Value, Value]:
        """Output -> input whose memory it overwrites, where the operation works in place."""
        by_port = dict(zip((port.name for port in self.op.outputs), self.outputs))
        return {by_port[made]: self.inputs[used] for made, used in self.op.inplace.items()}

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

    def state_aliases(self) -> dict[Value, Value]:
        """Value -> state, for every value that is a state after an overwrite in place."""
        return state_aliases(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


@dataclass(frozen=True, eq=False)
class Region:
    """A run of nodes that one device compiles into one executable.

    `inputs` are step inputs and values made by other regions; `outputs` are values that other regions or the caller
    need; `resident` are the weights, constants and states that must be on the device when it is compiled.
    A state that was overwritten in place goes on under the name of the operation's output; `aliases` says, for every
    such value that occurs here, which resident state it is. Aliases are neither inputs nor outputs.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    resident: tuple[Value, ...]
    dims: Mapping[str, Span]
    aliases: Mapping[Value, Value] = field(default_factory=dict)


def state_aliases(nodes: Sequence[Node]) -> dict[Value, Value]:
    """Value -> state, for every value of `nodes` that is a state after an overwrite in place."""
    aliases: dict[Value, Value] = {}
    for node in nodes:
        for made, used in node.overwrites.items():
            root = aliases.get(used, used)
            if root.kind == "state":
                aliases[made] = root
    return aliases


def make_region(
    name: str,
    nodes: Sequence[Node],
    dims: Mapping[str, Span],
    needed_outside: Sequence[Value],
    aliases: Mapping[Value, Value] | None = None,
) -> Region:
    """The region of `nodes`: its border follows from which values its nodes use, make, and which are needed outside.

    `aliases` are those of the whole graph (`Graph.state_aliases`); without it, those that `nodes` themselves make.
    """
    aliases = state_aliases(nodes) if aliases is None else aliases
    made = dict.fromkeys(v for node in nodes for v in node.outputs)
    used = list(dict.fromkeys(v for node in nodes for v in node.inputs.values()))
    outside = set(needed_outside)
    resident = [aliases.get(v, v) for v in used]
    return Region(
        name=name,
        nodes=tuple(nodes),
        inputs=tuple(v for v in used if v not in made and v not in aliases and v.kind in ("input", "intermediate")),
        outputs=tuple(v for node in nodes for v in node.outputs if v in outside and v not in aliases),
        resident=tuple(dict.fromkeys(v for v in resident if v.kind in ("weight", "constant", "state"))),
        dims=dims,
        aliases={v: aliases[v] for v in (*used, *made) if v in aliases},
    )


__all__ = ["CATALOGUE", "Graph", "Node", "Region", "Value", "ValueKind", "make_region", "state_aliases"]
