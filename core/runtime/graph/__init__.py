"""A model's step as data: values, nodes, graphs, and the regions that devices compile."""

from runtime.graph.builder import GraphBuilder
from runtime.graph.graph import Graph, Node, Region, Value, make_region

__all__ = ["Graph", "GraphBuilder", "Node", "Region", "Value", "make_region"]
