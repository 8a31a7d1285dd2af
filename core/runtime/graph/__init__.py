"""A model's step as data: values, nodes, graphs, and the regions that devices compile."""

from runtime.graph.builder import GraphBuilder
from runtime.graph.graph import Graph, Node, Region, Value, make_region
from runtime.graph.passes import eliminate_dead, expand_composites, expand_node, fold_constants
from runtime.graph.printing import format_graph
from runtime.graph.validate import validate

__all__ = [
    "Graph",
    "GraphBuilder",
    "Node",
    "Region",
    "Value",
    "eliminate_dead",
    "expand_composites",
    "expand_node",
    "fold_constants",
    "format_graph",
    "make_region",
    "validate",
]
