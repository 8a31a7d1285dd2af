"""Regions, transfers, and what a plan says of itself."""

from __future__ import annotations

import json

import numpy as np

from runtime.backend import Manifest, Rule, reference_manifest
from runtime.dtypes import FORMATS, Span, TensorSpec
from runtime.executor import make_plan
from runtime.graph import Graph, GraphBuilder

LINEAR_ONLY = Manifest("acme", rules=(Rule("linear@1"),))


def gated() -> Graph:
    """norm, then gate and up with a softcap between them in the given order, then their product."""
    b = GraphBuilder("gated", {"T": Span(1, 16)})
    x = b.input("x", "f32", ("T", 8))
    w = b.weight("w", TensorSpec(FORMATS["f32"], (8, 8)))
    x = b.op("rms_norm", name="norm", x=x, weight=b.constant("ones", np.ones(8)), attrs={"eps": 1e-5})
    gate = b.op("linear", name="gate", x=x, weight=w)
    gate = b.op("softcap", name="cap", x=gate, attrs={"cap": 1.0})
    up = b.op("linear", name="up", x=x, weight=w)
    b.output("y", b.op("glu", name="glu", gate=gate, up=up, attrs={"kind": "silu"}))
    return b.build()


def test_a_device_keeps_going_for_as_long_as_it_can():
    plan = make_plan(gated(), {"acme": LINEAR_ONLY})
    assert [(r.device, [n.name for n in r.region.nodes]) for r in plan.regions] == [
        ("host", ["norm"]),
        ("acme", ["gate", "up"]),
        ("host", ["cap", "glu"]),
    ]


def test_values_move_once_per_device():
    plan = make_plan(gated(), {"acme": LINEAR_ONLY})
    assert [(t.value.name, t.source, t.target, t.before_region) for t in plan.transfers] == [
        ("x", None, "host", 0),
        ("norm", "host", "acme", 1),
        ("gate", "acme", "host", 2),
        ("up", "acme", "host", 2),
    ]


def test_everything_on_one_device_is_one_region():
    plan = make_plan(gated(), {"cpu": reference_manifest("cpu")})
    assert len(plan.regions) == 1
    assert [v.name for v in plan.regions[0].region.inputs] == ["x"]
    assert [v.name for v in plan.regions[0].region.outputs] == ["glu"]
    assert [v.name for v in plan.regions[0].region.resident] == ["ones", "w"]


def test_what_reads_a_state_runs_before_what_overwrites_it():
    b = GraphBuilder("order", {"T": Span(1, 8), "B": Span(1, 4), "N": Span(1, 4)})
    x = b.input("x", "f32", ("T", 2))
    kv = b.state("kv", TensorSpec(FORMATS["f32"], (2, "B", 4, 1, 2), "kv"))
    b.output("before", b.op("kv_export", name="export", kv=kv, block_ids=b.input("ids", "i32", ("N",))))
    b.op("kv_write", name="write", kv=kv, k=x, v=x, slot_mapping=b.input("slots", "i32", ("T",)))
    plan = make_plan(b.build(), {"cpu": reference_manifest("cpu")})
    assert [n.name for n in plan.regions[0].region.nodes] == ["export", "write"]
    assert [(a.name, s.name) for a, s in plan.regions[0].region.aliases.items()] == [("write", "kv")]


def test_a_plan_describes_itself_and_is_plain_data():
    plan = make_plan(gated(), {"acme": LINEAR_ONLY})
    lines = plan.describe()
    assert lines[0].startswith("linear native (")
    assert lines[1] == "3 regions on host, acme; 3 transfers between devices per step, 96 B per token"
    assert lines[2] == "host: weights 32 B, KV cache 0 B, intermediates 1.54 KB (3.07 KB without reuse)"
    data = json.loads(json.dumps(plan.to_json()))
    assert data["regions"][1] == {"device": "acme", "nodes": ["gate", "up"]}
    assert data["placements"][0]["reasons"] == ["no rule in manifest"]
    assert data["dims"] == {"T": [1, 16, 1]}
