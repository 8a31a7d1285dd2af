"""Rewrites keep the meaning of a graph, and its names readable."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.dtypes import FORMATS, Span, TensorSpec
from runtime.errors import InvalidArgument
from runtime.graph import (
    Graph,
    GraphBuilder,
    eliminate_dead,
    expand_composites,
    expand_node,
    fold_constants,
    format_graph,
    validate,
)

F32 = FORMATS["f32"]


def feed_forward() -> Graph:
    b = GraphBuilder("ffn", {"T": Span(1, 8)})
    x = b.input("x", "f32", ("T", 4))
    gate, up = (b.weight(n, TensorSpec(F32, (6, 4))) for n in ("gate", "up"))
    down = b.weight("down", TensorSpec(F32, (4, 6)))
    h = b.op(
        "swiglu_ffn",
        name="layers.0.mlp",
        x=x,
        gate_weight=gate,
        up_weight=up,
        down_weight=down,
        attrs={"kind": "silu"},
    )
    b.output("y", b.op("add", name="sum", a=x, b=h))
    return b.build()


def test_a_composite_becomes_its_parts_under_its_name():
    graph = expand_composites(feed_forward(), keep=lambda node: False)
    validate(graph)
    assert [(n.name, n.op.key) for n in graph.nodes] == [
        ("layers.0.mlp.gate_proj", "linear@1"),
        ("layers.0.mlp.up_proj", "linear@1"),
        ("layers.0.mlp.glu", "glu@1"),
        ("layers.0.mlp.down_proj", "linear@1"),
        ("sum", "add@1"),
    ]
    assert graph.nodes[-1].inputs["b"] is graph.nodes[-2].outputs[0]


def test_a_composite_that_is_kept_stays_whole():
    graph = feed_forward()
    assert expand_composites(graph, keep=lambda node: True).nodes == graph.nodes


def test_nested_composites_are_expanded_to_the_ground():
    b = GraphBuilder("layer", {"T": Span(1, 8), "B": Span(1, 4), "S": Span(1, 2), "Q": Span(2, 3), "P": Span(1, 4)})

    def w(name, *shape):
        return b.weight(name, TensorSpec(F32, shape))

    y, _ = b.op(
        "decoder_layer",
        name="layers.0",
        x=b.input("x", "f32", ("T", 4)),
        attn_norm=w("an", 4),
        q_weight=w("q", 4, 4),
        k_weight=w("k", 2, 4),
        v_weight=w("v", 2, 4),
        positions=b.input("positions", "i32", ("T",)),
        inv_freq=b.constant("inv_freq", np.ones(1)),
        slot_mapping=b.input("slot_mapping", "i32", ("T",)),
        kv=b.state("kv", TensorSpec(F32, (2, "B", 4, 1, 2), "kv")),
        o_weight=w("o", 4, 4),
        ffn_norm=w("fn", 4),
        gate_weight=w("g", 6, 4),
        up_weight=w("u", 6, 4),
        down_weight=w("d", 4, 6),
        block_table=b.input("block_table", "i32", ("S", "P")),
        query_start_loc=b.input("query_start_loc", "i32", ("Q",)),
        seq_lens=b.input("seq_lens", "i32", ("S",)),
        attrs={"eps": 1e-5, "head_dim": 2, "num_heads": 2, "num_kv_heads": 1, "scale": 0.5, "kind": "silu"},
    )
    b.output("y", y)
    graph = expand_composites(b.build(), keep=lambda node: False)
    validate(graph)
    assert not any(node.op.is_composite for node in graph.nodes)
    write = next(n for n in graph.nodes if n.op.name == "kv_write")
    attention = next(n for n in graph.nodes if n.op.name == "attention")
    assert write.name == "layers.0.qkv_rope_write.kv_write"
    assert attention.inputs["kv"] is write.outputs[0]
    assert graph.state_aliases() == {write.outputs[0]: graph.states["kv"]}


def test_parts_never_take_the_name_of_a_weight():
    b = GraphBuilder("net", {"T": Span(1, 8)})
    x = b.input("x", "f32", ("T", 4))
    gate, up = (b.weight(n, TensorSpec(F32, (6, 4))) for n in ("mlp.gate_proj", "mlp.glu"))
    down = b.weight("mlp.down_proj", TensorSpec(F32, (4, 6)))
    weights = {"gate_weight": gate, "up_weight": up, "down_weight": down}
    b.output("y", b.op("swiglu_ffn", name="mlp", x=x, **weights, attrs={"kind": "silu"}))
    graph = expand_composites(b.build(), keep=lambda node: False)
    validate(graph)
    assert [n.name for n in graph.nodes] == ["mlp.gate_proj#2", "mlp.up_proj", "mlp.glu#2", "mlp.down_proj#2"]


def test_only_composites_can_be_expanded():
    node = feed_forward().nodes[-1]
    with pytest.raises(InvalidArgument, match=r"add@1 of node sum is no composite"):
        expand_node(node, {})


def test_nodes_of_constants_are_evaluated():
    b = GraphBuilder("folded", {"T": Span(1, 8)})
    twice = b.op("add", name="twice", a=b.constant("c", np.array([[1.0, 2.5]])), b=b.constant("c", np.zeros((1, 2))))
    again = b.op("mul", name="again", a=twice, b=twice)
    x = b.input("x", "f32", ("T", 2))
    b.output("y", b.op("linear", name="product", x=x, weight=again))
    graph = fold_constants(b.build())
    validate(graph)
    assert [n.name for n in graph.nodes] == ["product"]
    assert list(graph.constants) == ["again"]
    assert graph.constants["again"].data.tolist() == [[4.0, 25.0]]


def test_large_constants_are_not_evaluated_ahead():
    b = GraphBuilder("kept", {})
    b.output("y", b.op("softcap", x=b.constant("c", np.ones((2, 3))), attrs={"cap": 2.0}))
    assert len(fold_constants(b.build(), max_bytes=23).nodes) == 1
    assert len(fold_constants(b.build(), max_bytes=24).nodes) == 0


def test_what_no_output_and_no_state_needs_is_dropped():
    b = GraphBuilder("dead", {"T": Span(1, 8), "B": Span(1, 4)})
    x = b.input("x", "f32", ("T", 2))
    slots = b.input("slots", "i32", ("T",))
    kv = b.state("kv", TensorSpec(F32, (2, "B", 4, 1, 2), "kv"))
    b.op("linear", name="unused", x=x, weight=b.weight("unused.weight", TensorSpec(F32, (2, 2))))
    b.op("kv_write", name="write", kv=kv, k=x, v=x, slot_mapping=slots)
    b.output("y", b.op("softcap", name="cap", x=x, attrs={"cap": 1.0}))
    graph = eliminate_dead(b.build())
    assert [n.name for n in graph.nodes] == ["write", "cap"]
    assert list(graph.weights) == []
    assert list(graph.inputs) == ["x", "slots"]


def test_a_graph_prints_one_line_per_value_and_node():
    b = GraphBuilder("tiny", {"T": Span(1, 512)})
    x = b.input("x", "f32", ("T", 64))
    h = b.op("linear", name="proj", x=x, weight=b.weight("proj.weight", TensorSpec(FORMATS["q8_0"], (32, 64))))
    b.output("y", b.op("softcap", x=h, attrs={"cap": 30.0}))
    assert format_graph(b.build()).splitlines() == [
        "graph tiny: T 1..512",
        "  input    x: f32[T, 64]",
        "  weight   proj.weight: q8_0[32, 64]",
        "  proj = linear@1(x=x, weight=proj.weight) -> f32[T, 32]",
        "  softcap = softcap@1(x=proj, cap=30) -> f32[T, 32]",
        "  output   y = softcap",
    ]
