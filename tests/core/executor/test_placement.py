"""Where nodes go, over whole ranges, and what is said about it."""

from __future__ import annotations

import pytest

from runtime.backend import Manifest, OneOf, Range, Rule, reference_manifest
from runtime.dtypes import FORMATS, Span, TensorSpec
from runtime.errors import FallbackForbidden, InvalidArgument, Unsupported
from runtime.executor import make_plan
from runtime.graph import Graph, GraphBuilder

LINEAR_F32 = Rule("linear@1", (OneOf("weight.format", ("f32",)),))


def block(weight_format: str = "f32") -> Graph:
    """rms_norm, linear, softcap on rows of 64."""
    b = GraphBuilder("block", {"T": Span(1, 16)})
    x = b.input("x", "f32", ("T", 64))
    h = b.op("rms_norm", name="norm", x=x, weight=b.weight("g", TensorSpec(FORMATS["f32"], (64,))), attrs={"eps": 1e-5})
    h = b.op("linear", name="proj", x=h, weight=b.weight("w", TensorSpec(FORMATS[weight_format], (256, 64))))
    b.output("y", b.op("softcap", name="cap", x=h, attrs={"cap": 30.0}))
    return b.build()


def vocabulary() -> Graph:
    b = GraphBuilder("vocabulary", {"T": Span(1, 4)})
    values, indices = b.op("topk", name="top", x=b.input("x", "f32", ("T", 131072)), attrs={"k": 4})
    b.output("values", values)
    b.output("indices", indices)
    return b.build()


def cache() -> Graph:
    b = GraphBuilder("cache", {"T": Span(1, 8), "S": Span(1, 2), "Q": Span(2, 3), "P": Span(1, 4), "B": Span(1, 8)})
    x = b.input("x", "f32", ("T", 8))
    kv = b.state("kv", TensorSpec(FORMATS["f32"], (2, "B", 4, 1, 8), "kv"))
    kv = b.op("kv_write", name="write", kv=kv, k=x, v=x, slot_mapping=b.input("slots", "i32", ("T",)))
    y = b.op(
        "attention",
        name="attend",
        q=x,
        kv=kv,
        block_table=b.input("table", "i32", ("S", "P")),
        query_start_loc=b.input("starts", "i32", ("Q",)),
        seq_lens=b.input("lens", "i32", ("S",)),
        attrs={"num_heads": 1, "num_kv_heads": 1, "head_dim": 8, "scale": 0.5},
    )
    b.output("y", y)
    return b.build()


def devices_of(plan):
    return {p.node.name: (p.device, p.how) for p in plan.placements.by_node}


def reasons_of(plan, name):
    return next(p.reasons for p in plan.placements.by_node if p.node.name == name)


def test_what_a_partial_backend_lacks_runs_on_the_host():
    plan = make_plan(block(), {"acme": Manifest("acme", rules=(LINEAR_F32,))})
    assert devices_of(plan) == {"norm": ("host", "host"), "proj": ("acme", "native"), "cap": ("host", "host")}
    assert reasons_of(plan, "norm") == ("no rule in manifest",)


def test_the_line_gives_shares_of_the_work_and_a_reason():
    plan = make_plan(block(), {"acme": Manifest("acme", rules=(LINEAR_F32,))})
    # one token: linear moves 256 + 65536 + 1024 bytes; norm 256 + 256 + 256; cap 1024 + 1024 (its arithmetic is less)
    assert plan.summary.line() == (
        "linear native (96.0 % of the work); host: 2 other operations (4.0 %), e.g. softcap: no rule in manifest"
    )


def test_forbid_names_every_reason():
    with pytest.raises(FallbackForbidden) as caught:
        make_plan(block(), {"acme": Manifest("acme", rules=(LINEAR_F32,))}, fallback="forbid")
    assert caught.value.reasons == (
        "norm (rms_norm@1): no rule in manifest",
        "cap (softcap@1): no rule in manifest",
    )
    assert str(caught.value) == (
        "block cannot be placed on acme with --fallback forbid: norm (rms_norm@1): no rule in manifest; "
        "cap (softcap@1): no rule in manifest; allow the host with --fallback host"
    )


def test_a_size_that_no_rule_reaches_is_explained():
    acme = Manifest("acme", rules=(Rule("topk@1", (Range("N", 0, 4096),)),))
    plan = make_plan(vocabulary(), {"acme": acme})
    assert devices_of(plan) == {"top": ("host", "host")}
    assert plan.summary.line() == (
        "host: 1 operation (100.0 %), e.g. topk: supported for N <= 4096, the plan needs 131072"
    )


def test_a_rule_that_covers_a_range_in_part_does_not_count():
    acme = Manifest("acme", rules=(Rule("topk@1", (Range("T", 1, 2),)),))
    assert acme.match("topk@1", {"T": Span(1, 4)}).coverage == "partial"
    plan = make_plan(vocabulary(), {"acme": acme})
    assert devices_of(plan) == {"top": ("host", "host")}
    assert reasons_of(plan, "top") == ("supported for 1 <= T <= 2, the plan needs 1..4",)
    with pytest.raises(FallbackForbidden, match=r"top \(topk@1\): supported for 1 <= T <= 2, the plan needs 1\.\.4"):
        make_plan(vocabulary(), {"acme": acme}, fallback="decompose")


def test_limits_of_a_step_are_limits_of_every_node():
    acme = Manifest("acme", rules=(Rule("topk@1"),), dims={"T": Span(1, 2)})
    plan = make_plan(vocabulary(), {"acme": acme})
    assert reasons_of(plan, "top") == ("a step of acme: supported for 1 <= T <= 2, the plan needs 1..4",)


def test_a_weight_is_decoded_at_load_where_the_kernel_wants_another_format():
    plan = make_plan(block("q8_0"), {"acme": Manifest("acme", rules=(LINEAR_F32,))})
    assert devices_of(plan)["proj"] == ("acme", "converted")
    assert plan.placements.converted == {"w:f32": "w"}
    assert plan.graph.weights["w:f32"].spec == TensorSpec(FORMATS["f32"], (256, 64))
    assert "w" not in plan.graph.weights
    assert reasons_of(plan, "proj") == (
        "weight.format q8_0 is not one of f32",
        "w (q8_0) is decoded exactly to f32 at load",
    )


def test_a_weight_is_rounded_only_where_nothing_better_is_accepted():
    acme = Manifest("acme", rules=(Rule("linear@1", (OneOf("weight.format", ("f16",)),)),))
    plan = make_plan(block("q8_0"), {"acme": acme})
    assert reasons_of(plan, "proj")[1] == "w (q8_0) is decoded and rounded to f16 at load"


def test_forbid_refuses_to_decode_weights():
    acme = Manifest("acme", rules=(LINEAR_F32, Rule("rms_norm@1"), Rule("softcap@1")))
    with pytest.raises(FallbackForbidden, match=r"weight\.format q8_0 is not one of f32"):
        make_plan(block("q8_0"), {"acme": acme}, fallback="forbid")
    assert devices_of(make_plan(block(), {"acme": acme}, fallback="forbid"))["proj"] == ("acme", "native")


def test_another_device_is_tried_before_the_host():
    acme = Manifest("acme", rules=(LINEAR_F32,))
    other = Manifest("other", rules=(Rule("rms_norm@1"), Rule("linear@1")))
    plan = make_plan(block(), [("acme", acme), ("other", other)])
    assert devices_of(plan) == {"norm": ("other", "native"), "proj": ("acme", "native"), "cap": ("host", "host")}
    assert reasons_of(plan, "cap") == ("acme: no rule in manifest", "other: no rule in manifest")
    assert plan.summary.line().startswith("linear native on acme (96.0 % of the work); rms_norm native on other")


def test_the_user_places_nodes_by_name():
    cpu = reference_manifest("cpu")
    plan = make_plan(block(), {"cpu": cpu, "acme": Manifest("acme", rules=(LINEAR_F32,))}, overrides=[("pr*", "acme")])
    assert devices_of(plan) == {"norm": ("cpu", "native"), "proj": ("acme", "native"), "cap": ("cpu", "native")}


def test_a_place_that_does_not_exist_is_refused():
    with pytest.raises(InvalidArgument, match="'proj=cuda': there is no device 'cuda'; present: cpu, host"):
        make_plan(block(), {"cpu": reference_manifest("cpu")}, overrides=[("proj", "cuda")])


def test_nodes_that_share_a_kv_cache_share_a_device():
    acme = Manifest("acme", rules=(Rule("kv_write@1"),))
    plan = make_plan(cache(), {"acme": acme})
    assert devices_of(plan) == {"write": ("host", "host"), "attend": ("host", "host")}
    assert reasons_of(plan, "write") == ("shares a KV cache with attend (attention), which acme cannot run",)
    both = Manifest("acme", rules=(Rule("kv_write@1"), Rule("attention@1")))
    assert devices_of(make_plan(cache(), {"acme": both})) == {"write": ("acme", "native"), "attend": ("acme", "native")}


def fused() -> Graph:
    b = GraphBuilder("fused", {"T": Span(1, 16)})
    x = b.input("x", "f32", ("T", 64))
    g, w = b.weight("g", TensorSpec(FORMATS["f32"], (64,))), b.weight("w", TensorSpec(FORMATS["f32"], (32, 64)))
    b.output("y", b.op("rms_norm_linear", name="fused", x=x, norm_weight=g, weight=w, attrs={"eps": 1e-5}))
    return b.build()


def test_a_composite_runs_whole_where_there_is_a_kernel():
    plan = make_plan(fused(), {"acme": Manifest("acme", rules=(Rule("rms_norm_linear@1"),))}, fallback="forbid")
    assert devices_of(plan) == {"fused": ("acme", "native")}


def test_a_composite_that_a_device_never_had_runs_natively_as_its_parts():
    plan = make_plan(fused(), {"cpu": reference_manifest("cpu")}, fallback="forbid")
    assert devices_of(plan) == {"fused.rms_norm": ("cpu", "native"), "fused.linear": ("cpu", "native")}
    assert plan.summary.line() == "all 2 operations native (100.0 % of the work)"


def test_a_fused_kernel_that_does_not_fit_is_reported():
    rules = (Rule("rms_norm_linear@1", (Range("T", 1, 8),)), Rule("rms_norm@1"), Rule("linear@1"))
    plan = make_plan(fused(), {"acme": Manifest("acme", rules=rules)})
    assert devices_of(plan) == {"fused.rms_norm": ("acme", "decomposed"), "fused.linear": ("acme", "decomposed")}
    reason = "part of fused: supported for 1 <= T <= 8, the plan needs 1..16"
    assert reasons_of(plan, "fused.linear") == (reason,)


def test_parts_of_a_composite_may_end_on_different_devices():
    plan = make_plan(fused(), {"acme": Manifest("acme", rules=(LINEAR_F32,))})
    assert devices_of(plan) == {"fused.rms_norm": ("host", "host"), "fused.linear": ("acme", "native")}


def test_a_host_that_lacks_an_operation_is_an_error_with_reasons():
    bare = Manifest("host")
    with pytest.raises(Unsupported) as caught:
        make_plan(block(), {"acme": Manifest("acme", rules=(LINEAR_F32,)), "host": bare})
    assert caught.value.reasons[:2] == (
        "norm (rms_norm@1): no rule in manifest",
        "norm (rms_norm@1): host: no rule in manifest",
    )


def test_an_unknown_policy_is_refused():
    with pytest.raises(InvalidArgument, match="fallback 'maybe' is unknown; it is one of forbid, decompose, host"):
        make_plan(block(), {"cpu": reference_manifest("cpu")}, fallback="maybe")
