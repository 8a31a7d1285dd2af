"""The smallest backend: one kernel of its own, everything else on the host, the same answers."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from runtime.backend import ENTRY_POINT_GROUP, Span, TensorSpec, reference_manifest
from runtime.dtypes import FORMATS, encode
from runtime.executor import Executor, make_plan
from runtime.graph import Graph, GraphBuilder
from runtime.registry import choose, discover

FOLDER = Path(__file__).resolve().parents[2] / "plugins/example"


def make_graph(weight_format: str) -> Graph:
    builder = GraphBuilder("block", {"T": Span(1, 8)})
    norm = builder.weight("norm.weight", TensorSpec(FORMATS["f32"], (64,)))
    weight = builder.weight("proj.weight", TensorSpec(FORMATS[weight_format], (32, 64)))
    x = builder.op("rms_norm", x=builder.input("x", "f32", ("T", 64)), weight=norm, attrs={"eps": 1e-6})
    builder.output("y", builder.op("linear", x=x, weight=weight))
    return builder.build()


@pytest.mark.parametrize(("weight_format", "how"), [("f32", "native"), ("f16", "native"), ("q8_0", "converted")])
def test_its_one_kernel_answers_like_the_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weight_format: str, how: str
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = discover([EntryPoint("example", "runtime_example:plugin", ENTRY_POINT_GROUP)])
    choice = choose(found, "example:0")
    rng = np.random.default_rng(1)
    stored = {
        "norm.weight": (FORMATS["f32"], np.ones(64, np.float32)),
        "proj.weight": (FORMATS[weight_format], rng.standard_normal((32, 64), np.float32)),
    }
    data = {n: (TensorSpec(f, w.shape), memoryview(encode(f, w))) for n, (f, w) in stored.items()}
    x = rng.standard_normal((3, 64), np.float32)

    graph = make_graph(weight_format)
    plan = make_plan(graph, {"example": choice.backend.manifest()})
    device = choice.backend.open(choice.device)
    y = Executor(plan, {"example": device}, data.__getitem__).run({"x": x}, {"T": 3})["y"]

    alone = make_plan(graph, {"host": reference_manifest("host")})
    expected = Executor(alone, {}, data.__getitem__).run({"x": x}, {"T": 3})["y"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert re.match(rf"linear {how} \(\d+\.\d % of the work\)", plan.summary.line())
    assert "host: 1 other operation" in plan.summary.line()
    assert device.counters()["kernels_run"] == 1
