"""Cases: ids that hash their content, data that is the same everywhere, coverage of all pairs, edges of a manifest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from runtime.backend import KVLayout, Manifest, Numerics, OneOf, Range, Rule, reference_manifest
from runtime.dtypes import FORMATS
from runtime.errors import InvalidArgument
from runtime.ops import CATALOGUE
from runtime_conformance.case import Case, Tensor
from runtime_conformance.cases import make_cases, spaces
from runtime_conformance.cases.covering import covering_rows
from runtime_conformance.cases.edges import edge_cases
from runtime_conformance.data import Stream, decode_data, make_data, make_decoy
from runtime_conformance.model_cases import model_cases

LINEAR = Case(
    "linear@1",
    {"x": Tensor("f32", (2, 64)), "weight": Tensor("q8_0", (4, 64), "weight", ("normal", 0.05))},
)


def test_an_id_is_the_hash_of_the_content_and_of_nothing_else():
    assert LINEAR.id == "linear@1/bf31b4"
    assert LINEAR.but(note="from somewhere", origin="edge").id == LINEAR.id
    assert LINEAR.but(kind="exact").id != LINEAR.id


def test_a_case_survives_json():
    for case in itertools.islice(make_cases(reference_manifest("cpu"), budget="smoke"), 0, None, 7):
        assert Case.from_json(case.to_json()) == case
        assert Case.from_json(case.to_json()).id == case.id


def test_random_words_never_change():
    assert Stream("a", 1).words(2).tolist() == [1276324099032739186, 12527165541128758455]


def test_data_are_the_same_bytes_every_time_and_differ_by_seed_and_tensor():
    first, second, other = make_data(LINEAR, 7), make_data(LINEAR, 7), make_data(LINEAR, 8)
    assert all(np.array_equal(first[n], second[n]) for n in first)
    assert not np.array_equal(first["x"], other["x"])
    assert first["x"][:8].tolist() == [11, 141, 218, 62, 221, 89, 150, 62]


def test_bell_data_have_mean_zero_and_variance_one():
    x = Stream("bell").bell((100_000,))
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02


@pytest.mark.parametrize("name", [f.name for f in FORMATS if f.is_quantized])
def test_every_block_format_has_ordinary_data(name: str):
    tensor = Tensor(name, (4, 256), "weight", ("normal", 0.05))
    case = Case("linear@1", {"x": Tensor("f32", (1, 256)), "weight": tensor})
    values = decode_data(case, make_data(case, 7))["weight"]
    assert np.isfinite(values).all()
    assert 0 < np.abs(values).max() < 100


def test_a_decoy_has_other_contents_of_the_same_size():
    stored = make_data(LINEAR, 7)
    decoy = make_decoy(LINEAR, stored)
    assert decoy["x"].size == stored["x"].size
    assert not np.array_equal(decoy["x"], stored["x"])
    assert decoy["weight"] is stored["weight"]


def test_all_pairs_of_values_are_covered_by_few_rows():
    domains = {"a": (1, 2, 3), "b": ("x", "y", "z"), "c": (True, False), "d": (0, 1, 2)}
    rows = list(covering_rows("test", domains))
    assert len(rows) <= 16
    for one, two in itertools.combinations(domains, 2):
        seen = {(row[one], row[two]) for row in rows}
        assert seen == set(itertools.product(domains[one], domains[two]))


def test_every_operation_but_composites_has_a_space():
    covered = {s.op for s in spaces(reference_manifest("cpu"))}
    assert {op.key for op in CATALOGUE} == covered


def test_budgets_grow_and_ids_are_unique():
    small = [c.id for c in make_cases(reference_manifest("cpu"), budget="smoke", ops=("rope", "add"))]
    large = [c.id for c in make_cases(reference_manifest("cpu"), budget="pr", ops=("rope", "add"))]
    assert len(set(small)) == len(small) < len(set(large)) == len(large)


def test_an_unknown_budget_is_refused():
    with pytest.raises(InvalidArgument, match="budget 'tiny' is unknown; it is one of smoke, pr, full"):
        list(make_cases(reference_manifest("cpu"), budget="tiny"))


def test_bounds_of_a_manifest_become_cases_inside_and_outside():
    rule = Rule("topk@1", (OneOf("x.format", ("f32",)), Range("N", 8, 512)), Numerics())
    cases = list(make_cases(Manifest("m", rules=(rule,)), budget="pr", ops=("topk",)))
    edges = {c.note: c.expect for c in cases if c.origin == "edge"}
    assert edges["N = 512, inside"] == "run"
    assert edges["N = 511, inside"] == "run"
    assert edges["N = 513, outside"] == "outside"
    assert edges["N = 7, outside"] == "outside"
    assert edges["x.format = f16, outside"] == "outside"


def test_formats_that_nobody_claims_take_one_case_each():
    rule = Rule("linear@1", (OneOf("weight.format", ("f32", "q8_0")),))
    cases = list(make_cases(Manifest("m", rules=(rule,)), budget="pr", ops=("linear",)))
    unclaimed = [c for c in cases if c.inputs["weight"].format == "q4_1" and c.origin == "covering"]
    assert len(unclaimed) == 1


def test_contents_that_break_a_rule_become_cases_that_expect_an_error():
    notes = {c.note for c in make_cases(reference_manifest("cpu"), ops=("kv_write",)) if c.expect == "refuse"}
    assert notes == {"slots exist", "only -1 stands for nothing", "a slot is written once"}


def test_caches_follow_the_layouts_of_the_manifest():
    manifest = Manifest("m", rules=(Rule("attention@1"),), kv_layouts=(KVLayout(block_sizes=(32,), formats=("bf16",)),))
    for case in make_cases(manifest, budget="smoke", ops=("attention",)):
        if case.expect == "run":
            assert case.inputs["kv"].format == "bf16"
            assert case.inputs["kv"].shape[2] == 32


def test_the_operations_of_a_graph_become_cases():
    from runtime.dtypes import Span, TensorSpec
    from runtime.graph import GraphBuilder

    b = GraphBuilder("g", {"T": Span(1, 512)})
    h = b.op("rms_norm", x=b.input("x", "f32", ("T", 96)), weight=b.input("g", "f32", (96,)), attrs={"eps": 1e-6})
    b.output("y", b.op("linear", x=h, weight=b.weight("w", TensorSpec(FORMATS["q4_0"], (40000, 96)))))
    cases = list(model_cases(b.build(), reference_manifest("cpu")))
    assert {c.op for c in cases} == {"rms_norm@1", "linear@1"}
    assert {c.inputs["weight"].shape for c in cases if c.op == "linear@1"} == {(512, 96)}


@pytest.mark.parametrize("op", ["activation@1", "glu@1", "swiglu_ffn@1", "decoder_layer@1"])
def test_the_edge_of_an_attribute_called_kind_is_a_case_of_that_attribute(op: str) -> None:
    manifest = Manifest("x", rules=(Rule(op, (OneOf("kind", ("silu",)),)),))
    space = next(s for s in spaces(manifest) if s.op == op)
    (inside, *_) = edge_cases(space, manifest, 4)
    assert inside.attrs["kind"] == "silu"
    assert inside.kind != "silu"
