"""What a graph must keep to, and what the error says where it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from runtime.dtypes import FORMATS, Span, TensorSpec
from runtime.errors import InvalidArgument
from runtime.graph import Graph, GraphBuilder, Node, Value, validate

F32 = FORMATS["f32"]


def two_linears() -> Graph:
    b = GraphBuilder("tiny", {"T": Span(1, 8)})
    x = b.input("x", "f32", ("T", 4))
    h = b.op("linear", name="first", x=x, weight=b.weight("w1", TensorSpec(F32, (6, 4))))
    b.output("y", b.op("linear", name="second", x=h, weight=b.weight("w2", TensorSpec(F32, (2, 6)))))
    return b.build()


def kv_graph() -> Graph:
    b = GraphBuilder("cache", {"T": Span(1, 8), "B": Span(1, 4)})
    kv = b.state("kv", TensorSpec(F32, (2, "B", 4, 1, 2), "kv"))
    k, slots = b.input("k", "f32", ("T", 2)), b.input("slots", "i32", ("T",))
    kv = b.op("kv_write", name="write", kv=kv, k=k, v=k, slot_mapping=slots)
    b.op("kv_write", name="write_again", kv=kv, k=k, v=k, slot_mapping=slots)
    return b.build()


def test_a_graph_of_the_builder_is_valid():
    validate(two_linears())
    validate(kv_graph())


def test_a_value_that_is_used_before_it_is_made_is_refused():
    graph = two_linears()
    broken = replace(graph, nodes=graph.nodes[::-1])
    with pytest.raises(InvalidArgument, match=r"node second uses <intermediate first: f32\[T, 6\]> \(x\) before it is"):
        validate(broken)


def test_two_nodes_of_one_name_are_refused():
    graph = two_linears()
    first, second = graph.nodes
    with pytest.raises(InvalidArgument, match="two nodes called 'first'"):
        validate(replace(graph, nodes=(first, replace(second, name="first"))))


def test_two_values_of_one_name_are_refused():
    graph = two_linears()
    first, second = graph.nodes
    twin = replace(second, outputs=(Value("first", second.outputs[0].spec, "intermediate"),))
    with pytest.raises(InvalidArgument, match="two values called 'first'"):
        validate(replace(graph, nodes=(first, twin), outputs={"y": twin.outputs[0]}))


def test_an_undeclared_dimension_is_refused():
    with pytest.raises(InvalidArgument, match=r"x is f32\[T, 4\], and 'T' is no declared dimension; declared: none"):
        validate(replace(two_linears(), dims={}))


def test_an_output_that_nothing_makes_is_refused():
    graph = two_linears()
    stranger = Value("stranger", TensorSpec(F32, (1,)), "intermediate")
    with pytest.raises(
        InvalidArgument, match=r"output 'z' is <intermediate stranger: f32\[1\]>, which nothing defines"
    ):
        validate(replace(graph, outputs={"z": stranger}))


def test_outputs_that_contradict_the_operation_are_refused():
    graph = two_linears()
    first, second = graph.nodes
    wrong = Value("wrong", TensorSpec(F32, ("T", 3)), "intermediate")
    node = Node("second", second.op, second.inputs, (wrong,), {})
    with pytest.raises(InvalidArgument, match=r"node second makes f32\[T, 3\]; linear@1 makes f32\[T, 2\]"):
        validate(replace(graph, nodes=(first, node), outputs={"y": wrong}))


def test_a_state_that_was_overwritten_is_not_used_again():
    graph = kv_graph()
    write, again = graph.nodes
    stale = replace(again, inputs={**again.inputs, "kv": graph.states["kv"]})
    with pytest.raises(
        InvalidArgument, match=r"uses <state kv: .*> \(kv\) after write overwrote it; use the output of"
    ):
        validate(replace(graph, nodes=(write, stale)))


def test_the_aliases_of_a_state_lead_to_the_state():
    graph = kv_graph()
    write, again = graph.nodes
    kv = graph.states["kv"]
    assert graph.state_aliases() == {write.outputs[0]: kv, again.outputs[0]: kv}


def test_a_constant_needs_no_declaration_of_dimensions():
    b = GraphBuilder("constant", {})
    b.output("y", b.op("softcap", x=b.constant("c", np.ones((2, 3))), attrs={"cap": 2.0}))
    validate(b.build())
