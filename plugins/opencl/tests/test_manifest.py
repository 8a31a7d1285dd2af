"""Rules at their edges. No device is needed here."""

from __future__ import annotations

import pytest

from runtime.backend import Manifest, Span, TensorSpec, reference_manifest
from runtime.dtypes import FORMATS
from runtime.executor import make_plan
from runtime.graph import GraphBuilder
from runtime.ops import CATALOGUE
from runtime_opencl.lowering import LOWER
from runtime_opencl.manifest import make_manifest
from runtime_opencl.memory import Lifetime, assign_slots

MANIFEST = make_manifest()
LINEAR = {"x.format": "f32", "weight.format": "q4_k", "has.bias": False, "K": 256, "N": 8, "T": Span(1, 512)}
ATTENTION = {"q.format": "f32", "kv.format": "f16", "head_dim": 128}


def test_every_rule_has_a_kernel_and_every_kernel_a_rule() -> None:
    assert {r.op for r in MANIFEST.rules} == set(LOWER)
    assert not any(CATALOGUE[r.op].is_composite for r in MANIFEST.rules)
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k"])
def test_formats_of_weights(fmt: str) -> None:
    assert MANIFEST.match("linear@1", LINEAR | {"weight.format": fmt, "K": 512}).coverage == "full"
    assert MANIFEST.match("embed@1", {"weight.format": fmt, "K": 512}).coverage == "full"


@pytest.mark.parametrize(
    ("op", "facts", "reason"),
    [
        ("linear@1", LINEAR | {"weight.format": "q5_k"}, "weight.format q5_k is not one of f32"),
        ("linear@1", LINEAR | {"K": 128}, "K must be a multiple of 256, the plan needs 128"),
        ("linear@1", LINEAR | {"x.format": "f16"}, "x.format f16 is not one of f32"),
        ("linear@1", LINEAR | {"has.bias": True, "bias.format": "bf16"}, "bias.format bf16 is not one of f32"),
        ("attention@1", ATTENTION | {"head_dim": 257}, "supported for 1 <= head_dim <= 256, the plan needs 257"),
        ("attention@1", ATTENTION | {"kv.format": "q8_0"}, "kv.format q8_0 is not one of f16, f32"),
        ("kv_write@1", {"k.format": "f32", "v.format": "f32", "kv.format": "bf16"}, "kv.format bf16 is not one of"),
        ("convert@1", {"x.format": "f32", "format": "f64"}, "format f64 is not one of f32, f16, bf16"),
        ("topk@1", {"x.format": "f32"}, "no rule in manifest"),
    ],
)
def test_what_is_refused_says_why(op: str, facts: dict, reason: str) -> None:
    match = MANIFEST.match(op, facts)
    assert match.coverage == "none"
    assert any(reason in r for r in match.reasons), match.reasons


def test_a_weight_without_a_kernel_is_decoded_at_load() -> None:
    builder = GraphBuilder("converted", {"T": Span(1, 4)})
    weight = builder.weight("w", TensorSpec(FORMATS["q5_0"], (8, 32)))
    builder.output("y", builder.op("linear", x=builder.input("x", "f32", ("T", 32)), weight=weight))
    plan = make_plan(builder.build(), {"opencl": MANIFEST, "host": reference_manifest("host")})
    assert plan.summary.line().startswith("linear converted (100.0 % of the work)")


def test_values_that_live_at_different_times_share_a_slot() -> None:
    slots, sizes = assign_slots(
        [Lifetime("a", 100, 0, 1), Lifetime("b", 40, 1, 2), Lifetime("c", 120, 2, 3), Lifetime("d", 40, 3, 4)]
    )
    assert slots == {"a": 0, "b": 1, "c": 0, "d": 1}
    assert sizes == [120, 40]
