"""Two plans on the same memory: what one executor writes into a state, another reads."""

from __future__ import annotations

import numpy as np

from runtime.backend import ReferenceDevice
from runtime.dtypes import FORMATS, Span, TensorSpec
from runtime.executor import Executor, make_plan
from runtime.graph import Graph, GraphBuilder

KV = TensorSpec(FORMATS["f32"], (2, "B", 4, 1, 2), "kv")
SIZES = {"B": 3}


def writing() -> Graph:
    b = GraphBuilder("writing", {"T": Span(1, 8), "B": Span(1, 8)})
    rows = {name: b.input(name, "f32", ("T", 2)) for name in ("k", "v")}
    b.op("kv_write", kv=b.state("layers.0.kv", KV), slot_mapping=b.input("slots", "i32", ("T",)), **rows)
    return b.build()


def reading() -> Graph:
    b = GraphBuilder("reading", {"N": Span(1, 3), "B": Span(1, 8)})
    ids = b.input("block_ids", "i32", ("N",))
    b.output("data", b.op("kv_export", kv=b.state("layers.0.kv", KV), block_ids=ids))
    return b.build()


def test_a_second_executor_sees_the_states_of_the_first_and_leaves_them_open() -> None:
    device = ReferenceDevice()

    def executor(graph: Graph, shared: Executor | None = None) -> Executor:
        plan = make_plan(graph, {"host": device.manifest}, state_dims=SIZES)
        return Executor(plan, {"host": device}, state_dims=SIZES, shared=shared)

    writer = executor(writing())
    assert writer.state("layers.0.kv")[0] == "host"
    reader = executor(reading(), writer)
    k, v = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6], [7, 8]], np.float32)
    writer.run({"k": k, "v": v, "slots": np.array([9, 4], np.int32)}, {"T": 2})
    data = reader.run({"block_ids": np.array([2, 1], np.int32)}, {"N": 2})["data"]
    assert data[:, 0, 1, 0].tolist() == [[1, 2], [5, 6]]
    assert data[:, 1, 0, 0].tolist() == [[3, 4], [7, 8]]
    reader.close()
    writer.run({"k": k, "v": v, "slots": np.array([0, 1], np.int32)}, {"T": 2})
    writer.close()
    device.close()
