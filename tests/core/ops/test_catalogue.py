"""What holds for every operation of the catalogue."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops import CATALOGUE, EXACT, FAMILIES, Attr, Catalogue, Check, Op, Port, Refusal, Work
from runtime.ops.shapes import bind_dims

PART_A = (
    "embed linear rms_norm layer_norm rope attention kv_write kv_copy_blocks kv_export kv_import activation glu add mul "
    "softcap convert gather_rows concat split softmax topk argmax"
)
REFUSALS = [(op, refusal) for op in CATALOGUE for refusal in op.refusals]


def test_the_catalogue_holds_the_operations_of_version_1():
    assert {f"{name}@1" for name in PART_A.split()} <= {op.key for op in CATALOGUE}


def test_every_family_module_lists_its_operations():
    assert [op.key for module in FAMILIES for op in module.OPS] == [op.key for op in CATALOGUE]


def _infer_and_run(op: Op, refusal: Refusal) -> None:
    specs = refusal.input_specs(op)
    op.infer_specs(specs, refusal.attrs)
    assert refusal.values, "the specs pass, so the refusal must give contents"
    data = {n: np.asarray(refusal.values.get(n, np.zeros(s.resolve({})))) for n, s in specs.items()}
    op.run_reference(EXACT, data, refusal.attrs)


@pytest.mark.parametrize(("op", "refusal"), REFUSALS, ids=[f"{op.name}: {refusal.rule}" for op, refusal in REFUSALS])
def test_what_must_be_refused_is_refused_by_name_and_value(op: Op, refusal: Refusal):
    with pytest.raises(InvalidArgument, match=re.escape(op.key)):
        _infer_and_run(op, refusal)


@pytest.mark.parametrize(("op", "refusal"), REFUSALS, ids=[f"{op.name}: {refusal.rule}" for op, refusal in REFUSALS])
def test_refused_contents_are_the_only_fault_of_their_case(op: Op, refusal: Refusal):
    if refusal.values:
        op.infer_specs(refusal.input_specs(op), refusal.attrs)


@pytest.mark.parametrize("op", CATALOGUE, ids=lambda op: op.name)
def test_every_part_of_a_declaration_is_documented(op: Op):
    undocumented = [part.name for part in (*op.inputs, *op.outputs, *op.attrs) if not part.doc]
    assert not undocumented
    assert op.doc.rstrip().endswith((".", ")"))
    assert op.laws
    assert all(output in {p.name for p in op.outputs} for output in op.inplace)
    assert all(source in {p.name for p in op.inputs} for source in op.inplace.values())


@pytest.mark.parametrize("op", CATALOGUE, ids=lambda op: op.name)
def test_an_unknown_input_and_an_unknown_attribute_are_refused(op: Op):
    with pytest.raises(InvalidArgument, match="has no input 'nonsense'"):
        bind_dims(op, {"nonsense": TensorSpec(FORMATS["f32"], (2, 2))})
    with pytest.raises(InvalidArgument, match="has no attribute 'nonsense'"):
        op.infer_specs({}, {"nonsense": 1})


def _minimal(**changes: Any) -> Op:
    parts: dict[str, Any] = {
        "name": "twice",
        "version": 1,
        "family": "test",
        "doc": "y = 2 x.",
        "inputs": (Port("x", ("T",), doc="values"),),
        "outputs": (Port("y", ("T",), doc="twice as much"),),
        "reference": lambda r, x, factor=2.0: factor * x,
        "work": lambda i, o, a: Work(1, 1, 1),
        "check": Check("exact"),
        "attrs": (Attr("factor", float, "how much", 2.0, minimum=0.0),),
        "refusals": (Refusal("x is a vector", {"x": ("f32", (1, 1))}),),
    }
    return Op(**(parts | changes))


def test_a_declaration_without_refusals_or_documentation_is_not_accepted():
    for changes in ({"refusals": ()}, {"doc": " "}, {"outputs": ()}):
        with pytest.raises(InvalidArgument, match="lacks"):
            Catalogue().add(_minimal(**changes))


def test_a_key_is_taken_once():
    catalogue = Catalogue()
    catalogue.add(_minimal())
    with pytest.raises(InvalidArgument, match="twice@1 is already declared"):
        catalogue.add(_minimal())


@pytest.mark.parametrize(
    ("value", "why"),
    [(True, "must be float"), ("2", "must be float"), (float("nan"), "finite"), (-1, "at least 0")],
)
def test_an_attribute_of_the_wrong_kind_is_refused(value: Any, why: str):
    with pytest.raises(InvalidArgument, match=why):
        _minimal().infer_specs({"x": TensorSpec(FORMATS["f32"], (2,))}, {"factor": value})


def test_a_reference_runs_with_the_default_of_an_absent_attribute():
    (y,) = _minimal().run_reference(EXACT, {"x": np.array([1.5])}, {})
    assert y.tolist() == [3.0]
