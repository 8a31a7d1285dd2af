"""A graph as text, one line per value and node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.graph.graph import Graph, Node, Value


def format_graph(graph: Graph) -> str:
    """A readable listing::

    graph tiny: T 1..512
      input    x: f32[T, 64]
      weight   proj.weight: q8_0[32, 64]
      linear = linear@1(x=x, weight=proj.weight) -> f32[T, 32]
      output   y = linear
    """
    dims = ", ".join(f"{name} {span}" for name, span in graph.dims.items())
    lines = [f"graph {graph.name}: {dims}" if dims else f"graph {graph.name}"]
    kinds: tuple[tuple[str, Mapping[str, Value]], ...] = (
        ("input", graph.inputs),
        ("weight", graph.weights),
        ("constant", graph.constants),
        ("state", graph.states),
    )
    for kind, values in kinds:
        lines += [f"  {kind:<8} {value.name}: {value.spec}" for value in values.values()]
    lines += [f"  {format_node(node)}" for node in graph.nodes]
    lines += [f"  output   {name} = {value.name}" for name, value in graph.outputs.items()]
    return "\n".join(lines)


def format_node(node: Node) -> str:
    """One node: outputs, operation, inputs by port, attributes that differ from their defaults, output specs."""
    defaults = {a.name: a.default for a in node.op.attrs}
    arguments = [f"{port}={value.name}" for port, value in node.inputs.items()]
    arguments += [f"{k}={_short(v)}" for k, v in node.attrs.items() if k not in defaults or defaults[k] != v]
    made = ", ".join(v.name for v in node.outputs)
    specs = ", ".join(str(v.spec) for v in node.outputs)
    return f"{made} = {node.op.key}({', '.join(arguments)}) -> {specs}"


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
