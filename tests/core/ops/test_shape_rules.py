"""Shapes, formats and facts of nodes, with symbolic dimensions, and what nodes cost."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.dtypes import FORMATS, Span, TensorSpec
from runtime.errors import InvalidArgument
from runtime.graph import GraphBuilder
from runtime.ops import CATALOGUE


def spec(fmt: str, *shape: int | str, layout: str = "plain") -> TensorSpec:
    return TensorSpec(FORMATS[fmt], shape, layout)


KV = spec("f16", 2, "B", 16, 2, 8, layout="kv")
ATTENTION = {
    "q": spec("f32", "T", 32),
    "kv": KV,
    "block_table": spec("i32", "S", "P"),
    "query_start_loc": spec("i32", "Q"),
    "seq_lens": spec("i32", "S"),
}
HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "scale": 0.35}


@pytest.mark.parametrize(
    ("name", "inputs", "attrs", "outputs"),
    [
        ("embed", {"token_ids": spec("i32", "T"), "weight": spec("bf16", 100, 64)}, {}, ["f32[T, 64]"]),
        ("rms_norm", {"x": spec("bf16", "T", 64), "weight": spec("f32", 16)}, {"eps": 1e-5}, ["bf16[T, 64]"]),
        ("layer_norm", {"x": spec("f16", "T", 64), "weight": spec("f32", 64)}, {"eps": 1e-5}, ["f16[T, 64]"]),
        ("attention", ATTENTION, HEADS, ["f32[T, 32]"]),
        (
            "kv_write",
            {"kv": KV, "k": spec("f32", "T", 16), "v": spec("f32", "T", 16), "slot_mapping": spec("i32", "T")},
            {},
            ["f16[2, B, 16, 2, 8]"],
        ),
        ("kv_export", {"kv": KV, "block_ids": spec("i32", 3)}, {}, ["f32[2, 3, 16, 2, 8]"]),
        ("glu", {"gate": spec("f32", "T", 64), "up": spec("f32", "T", 64)}, {"kind": "silu"}, ["f32[T, 64]"]),
        ("convert", {"x": spec("f32", "T", 64)}, {"format": "bf16"}, ["bf16[T, 64]"]),
        ("gather_rows", {"x": spec("f32", "T", 64), "rows": spec("i32", "R")}, {}, ["f32[R, 64]"]),
        ("concat", {"x1": spec("f32", "T", 3), "x0": spec("f32", "T", 5)}, {}, ["f32[T, 8]"]),
        ("split", {"x": spec("f16", "T", 8)}, {"sizes": (3, 5)}, ["f16[T, 3]", "f16[T, 5]"]),
        ("topk", {"x": spec("f32", "T", 64)}, {"k": 4}, ["f32[T, 4]", "i32[T, 4]"]),
        ("argmax", {"x": spec("f32", "R", 64)}, {}, ["i32[R]"]),
    ],
)
def test_outputs_follow_from_inputs_with_symbolic_rows(
    name: str, inputs: dict[str, TensorSpec], attrs: dict[str, Any], outputs: list[str]
):
    assert [str(s) for s in CATALOGUE[f"{name}@1"].infer_specs(inputs, attrs)] == outputs


def test_the_format_of_an_output_does_not_depend_on_the_order_in_which_inputs_are_named():
    (y,) = CATALOGUE["linear@1"].infer_specs({"weight": spec("bf16", 8, 64), "x": spec("f32", "T", 64)}, {})
    assert str(y) == "f32[T, 8]"


def test_two_symbolic_dimensions_are_not_taken_for_the_same():
    with pytest.raises(InvalidArgument, match="with T = T"):
        CATALOGUE["add@1"].infer_specs({"a": spec("f32", "T", 8), "b": spec("f32", "R", 8)}, {})


def test_a_width_must_be_known_when_the_graph_is_built():
    with pytest.raises(InvalidArgument, match="fixed size"):
        CATALOGUE["concat@1"].infer_specs({"x0": spec("f32", "T", "P")}, {})


def test_a_kv_cache_is_not_taken_for_a_plain_tensor():
    with pytest.raises(InvalidArgument, match="layout plain, it must be kv"):
        CATALOGUE["kv_export@1"].infer_specs({"kv": spec("f32", 2, 4, 4, 2, 8), "block_ids": spec("i32", 1)}, {})


def test_facts_of_attention_name_dimensions_formats_layouts_options_and_attributes():
    op = CATALOGUE["attention@1"]
    inputs = {**ATTENTION, "sinks": spec("f32", 4)}
    facts = op.facts(inputs, {"y": spec("f32", "T", 32)}, {**HEADS, "window": 128})
    assert facts["T"] == "T"
    assert (facts["N"], facts["H"], facts["C"], facts["D"], facts["Hq"]) == (32, 2, 16, 8, 4)
    assert (facts["q.format"], facts["kv.format"], facts["y.format"], facts["kv.layout"]) == ("f32", "f16", "f32", "kv")
    assert facts["has.sinks"] is True
    assert facts["has.alibi_slopes"] is False
    assert (facts["window"], facts["softcap"], facts["causal"], facts["head_dim"]) == (128, 0.0, True, 8)


def test_facts_of_variadic_operations_number_their_widths():
    concat, split = CATALOGUE["concat@1"], CATALOGUE["split@1"]
    facts = concat.facts({"x0": spec("f32", "T", 5), "x1": spec("f32", "T", 3)}, {"y": spec("f32", "T", 8)}, {})
    assert (facts["K0"], facts["K1"], facts["K"], facts["x1.format"]) == (5, 3, 8, "f32")
    facts = split.facts(
        {"x": spec("f32", "T", 8)}, {"y0": spec("f32", "T", 5), "y1": spec("f32", "T", 3)}, {"sizes": (5, 3)}
    )
    assert (facts["K"], facts["K0"], facts["K1"], facts["y1.format"]) == (8, 5, 3, "f32")


def test_facts_of_topk_include_the_rows_width_and_k():
    facts = CATALOGUE["topk@1"].facts(
        {"x": spec("f32", "R", 131072)}, {"values": spec("f32", "R", 40), "indices": spec("i32", "R", 40)}, {"k": 40}
    )
    assert (facts["N"], facts["k"], facts["indices.format"]) == (131072, 40, "i32")


def test_a_graph_of_a_layer_resolves_work_for_any_number_of_tokens():
    b = GraphBuilder("layer", {n: Span(1, 4096) for n in "TSQPRB"})
    x = b.op("embed", token_ids=b.input("ids", "i32", ("T",)), weight=b.weight("embed", spec("q8_0", 100, 32)))
    kv = b.state("kv", KV)
    positions, slots = b.input("positions", "i32", ("T",)), b.input("slots", "i32", ("T",))
    normed = b.op("rms_norm", x=x, weight=b.weight("norm", spec("f32", 32)), attrs={"eps": 1e-5})
    k, v = b.op("split", x=normed, attrs={"sizes": (16, 16)})
    q = b.op("rope", x=normed, positions=positions, inv_freq=b.weight("freq", spec("f32", 4)), attrs={"head_dim": 8})
    kv = b.op("kv_write", kv=kv, k=k, v=v, slot_mapping=slots)
    y = b.op(
        "attention",
        q=q,
        kv=kv,
        block_table=b.input("table", "i32", ("S", "P")),
        query_start_loc=b.input("borders", "i32", ("Q",)),
        seq_lens=b.input("lens", "i32", ("S",)),
        attrs=HEADS,
    )
    b.output("y", b.op("add", a=y, b=b.op("concat", x0=k, x1=v)))
    graph = b.build()
    dims = {"T": 7, "S": 2, "Q": 3, "P": 4, "R": 1, "B": 9}
    work = {node.op.name: node.work(dims) for node in graph}
    # 7 ids of 4 bytes and 7 rows of one 34-byte block of q8_0
    assert (work["embed"].bytes_read, work["embed"].bytes_written) == (28 + 7 * 34, 7 * 32 * 4)
    # 7 rows of keys and of values, 2 heads of 8 in f16
    assert work["kv_write"].bytes_written == 7 * 2 * 16 * 2
    assert work["kv_write"].bytes_read == 2 * 7 * 16 * 4 + 28
    # two whole contexts of 4 blocks of 16 keys, not the whole cache
    assert work["attention"].bytes_read == 7 * 32 * 4 + 8 * 4 + 3 * 4 + 2 * 4 + 2 * 2 * 64 * 16 * 2
    # the 3.5 queries of a sequence see 62.75 keys on average; two products of 2 * 32 each
    assert work["attention"].operations == int(4 * 32 * 7 * 62.75)


def test_a_window_bounds_the_work_of_attention():
    sizes = {"q": (1, 32), "kv": (2, 512, 16, 2, 8), "block_table": (1, 512), "query_start_loc": (2,), "seq_lens": (1,)}
    inputs = {n: TensorSpec(ATTENTION[n].format, s, ATTENTION[n].layout) for n, s in sizes.items()}
    op = CATALOGUE["attention@1"]
    work = op.work(inputs, {"y": spec("f32", 1, 32)}, {**HEADS, "window": 100})
    assert work.operations == 4 * 32 * 100
    assert work.bytes_read == 32 * 4 + 512 * 4 + 8 + 4 + 2 * 100 * 16 * 2
