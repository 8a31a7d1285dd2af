"""Rewrites of a graph: expansion of composites, folding of constants, removal of what nobody needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runtime.dtypes import Span
from runtime.errors import InvalidArgument
from runtime.graph.builder import GraphBuilder
from runtime.graph.graph import Graph, Node, Value
from runtime.ops import CATALOGUE, Catalogue, Rounding


@dataclass(frozen=True)
class Expansion:
    """A composite as smaller nodes: `outputs` take the place of the composite's outputs, in order."""

    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    constants: Mapping[str, Value]


def expand_node(
    node: Node, dims: Mapping[str, Span], catalogue: Catalogue = CATALOGUE, taken: Collection[str] = ()
) -> Expansion:
    """The nodes that define the composite `node`, named `<name of the node>.<name of the part>`.

    Where that is one of the names in `taken`, a number follows.
    """
    if node.op.expand is None:
        raise InvalidArgument(f"{node.op.key} of node {node.name} is no composite, it cannot be expanded")
    builder = GraphBuilder(node.name, dims, catalogue, prefix=f"{node.name}.", taken=taken)
    result = node.op.expand(builder, dict(node.inputs), node.attrs)
    outputs = tuple(result) if isinstance(result, tuple) else (result,)
    wanted = tuple(v.spec for v in node.outputs)
    given = tuple(v.spec for v in outputs)
    if given != wanted:
        raise InvalidArgument(
            f"the expansion of {node.op.key} (node {node.name}) makes {_join(given)}, its declaration {_join(wanted)}"
        )
    graph = builder.build()
    return Expansion(graph.nodes, outputs, graph.constants)


def expand_composites(graph: Graph, keep: Callable[[Node], bool], catalogue: Catalogue = CATALOGUE) -> Graph:
    """Replace every composite for which `keep` is false by its parts, and their composites in turn."""
    constants = dict(graph.constants)
    renamed: dict[Value, Value] = {}
    nodes: list[Node] = []
    declared = (graph.inputs, graph.weights, graph.states, graph.constants)
    taken = {v.name for values in declared for v in values.values()}
    taken.update(v.name for node in graph.nodes for v in node.outputs)

    def visit(node: Node) -> None:
        node = with_inputs(node, renamed)
        if not node.op.is_composite or keep(node):
            nodes.append(node)
            return
        expansion = expand_node(node, graph.dims, catalogue, taken)
        constants.update(expansion.constants)
        taken.update(v.name for v in expansion.constants.values())
        taken.update(v.name for part in expansion.nodes for v in part.outputs)
        for part in expansion.nodes:
            visit(part)
        renamed.update((old, renamed.get(new, new)) for old, new in zip(node.outputs, expansion.outputs))

    for node in graph.nodes:
        visit(node)
    outputs = {name: renamed.get(v, v) for name, v in graph.outputs.items()}
    return replace(graph, nodes=tuple(nodes), outputs=outputs, constants=constants)


def fold_constants(graph: Graph, max_bytes: int = 16 << 20) -> Graph:
    """Evaluate, by reference, nodes whose inputs are all constants and whose outputs take at most `max_bytes`."""
    constants = dict(graph.constants)
    folded: dict[Value, Value] = {}
    nodes: list[Node] = []
    for original in graph.nodes:
        node = with_inputs(original, folded)
        if not _is_foldable(node, max_bytes):
            nodes.append(node)
            continue
        for old, new in zip(node.outputs, _evaluate(node)):
            folded[old] = constants[new.name] = new
    outputs = {name: folded.get(v, v) for name, v in graph.outputs.items()}
    return eliminate_dead(replace(graph, nodes=tuple(nodes), outputs=outputs, constants=constants))


def eliminate_dead(graph: Graph) -> Graph:
    """Drop nodes that no output and no state needs, then weights, constants and states that no node uses.

    Step inputs stay: the caller binds them whether they are used or not.
    """
    aliases = graph.state_aliases()
    needed = set(graph.outputs.values())
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(v in needed or v in aliases for v in node.outputs):
            kept.append(node)
            needed.update(node.inputs.values())
    return replace(
        graph,
        nodes=tuple(reversed(kept)),
        weights={n: v for n, v in graph.weights.items() if v in needed},
        constants={n: v for n, v in graph.constants.items() if v in needed},
        states={n: v for n, v in graph.states.items() if v in needed},
    )


def with_inputs(node: Node, replaced: Mapping[Value, Value]) -> Node:
    """`node` with inputs replaced where `replaced` names a successor; the node itself where it does not."""
    if not any(v in replaced for v in node.inputs.values()):
        return node
    return replace(node, inputs={port: replaced.get(v, v) for port, v in node.inputs.items()})


def _is_foldable(node: Node, max_bytes: int) -> bool:
    if not node.inputs or any(v.kind != "constant" for v in node.inputs.values()) or node.op.is_composite:
        return False
    specs = [v.spec for v in node.outputs]
    if any(isinstance(d, str) for s in specs for d in s.shape) or any(s.format.is_quantized for s in specs):
        return False
    return sum(s.nbytes() for s in specs) <= max_bytes


def _evaluate(node: Node) -> list[Value]:
    import numpy as np

    inputs: dict[str, Any] = {}
    for port, value in node.inputs.items():
        assert value.data is not None
        inputs[port] = value.data.astype(np.int64 if value.spec.format.kind != "float" else np.float64)
    results = []
    for value, make in zip(node.outputs, node.op.run_reference(Rounding({}), inputs, node.attrs), strict=True):
        kind = value.spec.format.kind
        data = np.asarray(make).astype(np.float64 if kind == "float" else np.int64)
        if kind == "float":
            data = Rounding({"output": value.spec.format.name}, mode="nearest")("output", data)
        results.append(Value(value.name, value.spec, "constant", data))
    return results


def _join(parts: Sequence[Any]) -> str:
    return ", ".join(str(p) for p in parts)
