"""The memory plan: nothing that lives at the same time overlaps, and little is wasted."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.backend import Manifest, Rule
from runtime.dtypes import FORMATS, Span, TensorSpec
from runtime.executor import make_plan
from runtime.executor.memory import Interval, plan_arena
from runtime.graph import GraphBuilder


def test_a_chain_needs_two_buffers_however_long_it_is():
    chain = [Interval(f"v{i}", 1000, i, i + 1) for i in range(10)]
    plan = plan_arena(chain)
    assert plan.peak_bytes == 2048
    assert plan.sum_bytes == 10240


def test_small_values_fill_the_gaps_of_dead_ones():
    plan = plan_arena([Interval("large", 256, 0, 1), Interval("a", 128, 2, 3), Interval("b", 64, 2, 3)])
    assert plan.offsets == {"large": 0, "a": 0, "b": 128}
    assert plan.peak_bytes == 256


INTERVALS = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 12), st.integers(0, 6)),
    max_size=25,
).map(lambda rows: [Interval(f"v{i}", size, first, first + length) for i, (size, first, length) in enumerate(rows)])


@settings(max_examples=200, deadline=None)
@given(INTERVALS)
def test_no_two_live_intervals_share_a_byte(intervals):
    plan = plan_arena(intervals)
    for step in range(20):
        owner: dict[int, str] = {}
        for interval in intervals:
            if interval.first <= step <= interval.last:
                start = plan.offsets[interval.name]
                assert start % 64 == 0
                assert start + interval.nbytes <= plan.peak_bytes
                for byte in range(start, start + interval.nbytes):
                    assert owner.setdefault(byte, interval.name) == interval.name
    alive = [sum(-(-i.nbytes // 64) * 64 for i in intervals if i.first <= s <= i.last) for s in range(20)]
    assert max(alive) <= plan.peak_bytes <= plan.sum_bytes


def test_a_plan_counts_weights_states_and_intermediates_per_device():
    b = GraphBuilder("sizes", {"T": Span(1, 10), "B": Span(1, 100)})
    x = b.input("x", "f32", ("T", 64))
    kv = b.state("kv", TensorSpec(FORMATS["f16"], (2, "B", 4, 1, 32), "kv"))
    h = b.op("linear", x=x, weight=b.weight("w", TensorSpec(FORMATS["q8_0"], (32, 64))))
    b.op("kv_write", kv=kv, k=h, v=h, slot_mapping=b.input("slots", "i32", ("T",)))
    b.output("y", b.op("softcap", x=h, attrs={"cap": 1.0}))
    acme = Manifest("acme", rules=(Rule("linear@1"),))
    plan = make_plan(b.build(), {"acme": acme}, state_dims={"B": 5})
    assert plan.memory["acme"].weights_bytes == 32 * 68
    assert plan.memory["acme"].states_bytes == 0
    assert plan.memory["host"].weights_bytes == 0
    assert plan.memory["host"].states_bytes == 2 * 5 * 4 * 32 * 2
    # x (10 x 64 x 4 bytes) and h (10 x 32 x 4 bytes) live together on acme
    assert plan.memory["acme"].arena.peak_bytes == 2560 + 1280
