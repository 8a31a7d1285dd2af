"""Collectives over all ranks at once, against literal values and the relations between them."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.dtypes import FORMATS, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops import collectives
from runtime.ops.rounding import EXACT, Rounding

A = np.array([[1.0, 2.0], [3.0, 4.0]])
B = np.array([[10.0, 20.0], [30.0, 40.0]])


def run(op, *ranks, **attrs):
    outputs = op.run_reference(EXACT, {f"x{i}": x for i, x in enumerate(ranks)}, attrs)
    specs = op.infer_specs({f"x{i}": TensorSpec(FORMATS["f32"], x.shape) for i, x in enumerate(ranks)}, attrs)
    assert [y.shape for y in outputs] == [spec.shape for spec in specs]
    return [y.tolist() for y in outputs]


def test_all_reduce_gives_every_rank_the_sum():
    assert run(collectives.ALL_REDUCE, A, B) == [[[11.0, 22.0], [33.0, 44.0]]] * 2


def test_all_gather_joins_in_the_order_of_ranks():
    assert run(collectives.ALL_GATHER, A, B) == [[[1.0, 2.0, 10.0, 20.0], [3.0, 4.0, 30.0, 40.0]]] * 2
    assert run(collectives.ALL_GATHER, A, B, axis=0) == [[[1.0, 2.0], [3.0, 4.0], [10.0, 20.0], [30.0, 40.0]]] * 2


def test_reduce_scatter_gives_each_rank_its_part_of_the_sum():
    assert run(collectives.REDUCE_SCATTER, A, B) == [[[11.0], [33.0]], [[22.0], [44.0]]]
    assert run(collectives.REDUCE_SCATTER, A, B, axis=0) == [[[11.0, 22.0]], [[33.0, 44.0]]]


def test_all_to_all_exchanges_parts():
    assert run(collectives.ALL_TO_ALL, A, B) == [[[1.0, 10.0], [3.0, 30.0]], [[2.0, 20.0], [4.0, 40.0]]]
    assert run(collectives.ALL_TO_ALL, A, B, axis=0) == [[[1.0, 2.0], [10.0, 20.0]], [[3.0, 4.0], [30.0, 40.0]]]


def test_broadcast_gives_every_rank_the_roots_tensor():
    assert run(collectives.BROADCAST, A, B, root=1) == [B.tolist()] * 2


@pytest.mark.parametrize("op", [collectives.SEND, collectives.RECV], ids=lambda op: op.name)
def test_a_transfer_changes_only_its_destination(op):
    assert run(op, A, B, 2 * A, src=1, dst=2) == [A.tolist(), B.tolist(), B.tolist()]


def test_outputs_share_no_memory_with_inputs_or_each_other():
    for op, attrs in [
        (collectives.ALL_REDUCE, {}),
        (collectives.BROADCAST, {}),
        (collectives.SEND, {"src": 0, "dst": 1}),
    ]:
        first, second = op.run_reference(EXACT, {"x0": A, "x1": B}, attrs)
        first[:] = 0
        assert second.any()
        assert A.all()


def test_reduce_scatter_then_all_gather_is_all_reduce_on_twelve_ranks():
    ranks = list(np.random.default_rng(0).normal(size=(12, 3, 24)))
    parts = [np.array(part) for part in run(collectives.REDUCE_SCATTER, *ranks)]
    assert run(collectives.ALL_GATHER, *parts) == run(collectives.ALL_REDUCE, *ranks)


def test_the_sum_is_rounded_at_its_declared_points():
    nearest = Rounding({"accumulate": "f32", "output": "f32"}, "nearest")
    big, small = np.array([[2.0**24]]), np.array([[1.0]])
    inputs = {"x0": big, "x1": small, "x2": small}
    assert collectives.ALL_REDUCE.run_reference(nearest, inputs, {})[0].tolist() == [[2.0**24]]


def test_ranks_must_agree_in_format_and_symbolic_sizes_cannot_be_joined():
    f32 = TensorSpec(FORMATS["f32"], ("T", 64))
    with pytest.raises(InvalidArgument, match="one format"):
        collectives.ALL_REDUCE.infer_specs({"x0": f32, "x1": TensorSpec(FORMATS["f16"], ("T", 64))}, {})
    with pytest.raises(InvalidArgument, match="symbolic"):
        collectives.ALL_GATHER.infer_specs({"x0": f32, "x1": f32}, {"axis": 0})
    assert collectives.ALL_GATHER.infer_specs({"x0": f32, "x1": f32}, {})[0].shape == ("T", 128)


def test_work_counts_what_moves():
    specs = {name: TensorSpec(FORMATS["f32"], (2, 8)) for name in ("x0", "x1")}
    outputs = {"y0": specs["x0"], "y1": specs["x1"]}
    reduced = collectives.ALL_REDUCE.work(specs, outputs, {})
    assert (reduced.operations, reduced.bytes_read, reduced.bytes_written) == (16, 128, 128)
    sent = collectives.SEND.work(specs, outputs, {"src": 0, "dst": 1})
    assert (sent.operations, sent.bytes_read, sent.bytes_written) == (0, 64, 64)
