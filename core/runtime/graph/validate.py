"""Checks a graph against the rules that every later stage relies on."""

from __future__ import annotations

from runtime.dtypes import TensorSpec
from runtime.errors import InvalidArgument
from runtime.graph.graph import Graph, Node, Value


def validate(graph: Graph) -> None:
    """Raise InvalidArgument, naming node and value, where `graph` breaks a rule.

    - names of nodes, and names of values, are unique
    - every value is defined before it is used, and made by one node only
    - every symbolic dimension is declared
    - the outputs of a node are what its operation says about its inputs and attributes
    - a value that an operation overwrites in place (a KV cache) is never used again; its successor is
    - every output of the graph exists
    """
    _check_names(graph)
    defined: set[Value] = set()
    for values in (graph.inputs, graph.weights, graph.states, graph.constants):
        for value in values.values():
            _check_dims(graph, value.spec, value.name)
            defined.add(value)
    overwritten_by: dict[Value, Node] = {}
    for node in graph.nodes:
        _check_uses(graph, node, defined, overwritten_by)
        _check_outputs(graph, node, defined)
        for source in node.overwrites.values():
            overwritten_by[source] = node
        defined.update(node.outputs)
    for name, value in graph.outputs.items():
        if value not in defined:
            raise InvalidArgument(f"graph {graph.name}: output '{name}' is {value!r}, which nothing defines")


def _check_names(graph: Graph) -> None:
    nodes: set[str] = set()
    for node in graph.nodes:
        if node.name in nodes:
            raise InvalidArgument(f"graph {graph.name} has two nodes called '{node.name}'")
        nodes.add(node.name)
    names: set[str] = set()
    declared = [v for d in (graph.inputs, graph.weights, graph.states, graph.constants) for v in d.values()]
    for value in [*declared, *(v for node in graph.nodes for v in node.outputs)]:
        if value.name in names:
            raise InvalidArgument(f"graph {graph.name} has two values called '{value.name}'")
        names.add(value.name)


def _check_dims(graph: Graph, spec: TensorSpec, where: str) -> None:
    for dim in spec.shape:
        if isinstance(dim, str) and dim not in graph.dims:
            raise InvalidArgument(
                f"graph {graph.name}: {where} is {spec}, and '{dim}' is no declared dimension; "
                f"declared: {', '.join(graph.dims) or 'none'}"
            )


def _check_uses(graph: Graph, node: Node, defined: set[Value], overwritten_by: dict[Value, Node]) -> None:
    for port, value in node.inputs.items():
        if value not in defined:
            raise InvalidArgument(f"graph {graph.name}: node {node.name} uses {value!r} ({port}) before it is defined")
        if value in overwritten_by:
            writer = overwritten_by[value]
            raise InvalidArgument(
                f"graph {graph.name}: node {node.name} uses {value!r} ({port}) after {writer.name} overwrote it",
                remedy=f"use the output of {writer.name}",
            )


def _check_outputs(graph: Graph, node: Node, defined: set[Value]) -> None:
    expected = node.op.infer_specs(node.input_specs, node.attrs)
    if tuple(v.spec for v in node.outputs) != expected:
        given = ", ".join(str(v.spec) for v in node.outputs)
        wanted = ", ".join(str(s) for s in expected)
        raise InvalidArgument(f"graph {graph.name}: node {node.name} makes {given}; {node.op.key} makes {wanted}")
    for value in node.outputs:
        if value in defined:
            raise InvalidArgument(f"graph {graph.name}: {value!r} is made twice, the second time by {node.name}")
        _check_dims(graph, value.spec, f"output {value.name} of node {node.name}")
