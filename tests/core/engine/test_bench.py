"""Measurements: what they compute, how they account for it, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.engine.bench import BenchPlan, BenchSequences, measure, step_cost
from runtime.engine.blocks import BlockPool
from runtime.engine.ceilings import MeasuresCeilings, measure_ceilings
from runtime.engine.files import open_for_engine
from runtime.engine.scheduler import Scheduled, Scheduler
from runtime.errors import InvalidArgument, OutOfMemory
from runtime.models import build_graph

BLOCK_SIZE = 4


class RecordingRunner:
    """Keeps what it was asked to compute: per step, (sequence, first position, tokens, blocks) of every part."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[str, int, int, int]]] = []

    def compute(self, parts: Sequence[Scheduled], rows: Sequence[int]) -> np.ndarray:
        self.steps.append(
            [(p.request.request_id, p.start, p.num_scheduled_tokens, len(p.request.block_table)) for p in parts]
        )
        return np.zeros((len(rows), 8), np.float32)


@pytest.fixture(scope="module")
def graph() -> Any:
    model = open_for_engine(None)
    graph = build_graph(model.spec, max_num_tokens=64, max_num_seqs=8, max_model_len=64, block_size=BLOCK_SIZE)
    model.file.close()
    return graph


def loaded(graph: Any, num_blocks: int = 64) -> Any:
    scheduler = Scheduler(BlockPool(num_blocks, BLOCK_SIZE), max_num_seqs=4, max_num_batched_tokens=8)
    return SimpleNamespace(
        engine=SimpleNamespace(runner=RecordingRunner(), scheduler=scheduler, has_work=False),
        plan=SimpleNamespace(graph=graph),
        spec=SimpleNamespace(vocab_size=8),
        context=SimpleNamespace(max_model_len=40),
    )


def test_a_prompt_is_computed_in_the_steps_of_the_engine(graph: Any) -> None:
    model = loaded(graph)
    sequences = BenchSequences(model, BenchPlan(prefill=(20,), decode=0))
    assert sequences.prefill(20) > 0
    assert model.engine.runner.steps == [
        [("bench-0", 0, 8, 2)],
        [("bench-0", 8, 8, 4)],
        [("bench-0", 16, 4, 5)],
    ]


def test_sequences_decode_together_with_blocks_of_their_own(graph: Any) -> None:
    model = loaded(graph)
    sequences = BenchSequences(model, BenchPlan(prefill=(), decode=2, depth=(3,), batch=(2,)))
    sequences.decode(2, depth=3, batch=2)
    assert model.engine.runner.steps == [
        [("bench-0", 3, 1, 1), ("bench-1", 3, 1, 1)],
        [("bench-0", 4, 1, 2), ("bench-1", 4, 1, 2)],
    ]
    tables = [part.request.block_table for part in sequences.parts(2, 4, 1)]
    assert not set(tables[0]) & set(tables[1])


def test_a_deeper_context_continues_a_shallower_one(graph: Any) -> None:
    model = loaded(graph)
    sequences = BenchSequences(model, BenchPlan(prefill=(), decode=4, depth=(8, 16), batch=(1, 2)))
    told: list[str] = []
    sequences.fill(1, 8, told.append)
    sequences.fill(2, 16, told.append)
    steps = [step[0][:3] for step in model.engine.runner.steps]
    assert steps == [("bench-0", 0, 8), ("bench-0", 8, 8), ("bench-1", 0, 8), ("bench-1", 8, 8)]
    assert told[0] == "filling the context: sequence 1 of 1, token 0 of 8"


def test_measurements_come_by_depth_and_batch_and_the_blocks_are_given_back(graph: Any) -> None:
    model = loaded(graph)
    found = list(measure(model, BenchPlan(prefill=(5,), decode=3, depth=(9, 0), batch=(1, 3), repeat=2)))
    assert [(m.kind, m.num_tokens, m.depth, m.batch) for m in found] == [
        ("prefill", 5, 0, 1),
        ("decode", 3, 0, 1),
        ("decode", 3, 0, 3),
        ("decode", 3, 9, 1),
        ("decode", 3, 9, 3),
    ]
    assert all(len(m.tokens_per_s) == 2 for m in found)
    assert model.engine.scheduler.pool.num_free == 64
    one = found[1]
    assert one.median_tokens_per_s == pytest.approx(sum(one.tokens_per_s) / 2)
    assert one.spread == pytest.approx(abs(one.tokens_per_s[0] - one.tokens_per_s[1]) / one.median_tokens_per_s)
    assert one.weight_bytes_per_s == pytest.approx(one.weight_bytes / one.step_s)
    assert one.to_json()["tokens_per_s"] == list(one.tokens_per_s)


def test_a_step_reads_every_weight_once_and_one_row_of_the_embedding(graph: Any) -> None:
    work, weight_bytes = step_cost(graph, num_tokens=1, num_seqs=1, num_blocks=1)
    embedding = graph.weights["embed_tokens.weight"].spec
    row = embedding.nbytes() // embedding.resolve({})[0]
    stored = sum(value.spec.nbytes() for value in graph.weights.values())
    tied = not any(name.startswith("lm_head") for name in graph.weights)
    assert weight_bytes - stored == pytest.approx(row if tied else row - embedding.nbytes(), abs=16)
    assert work.bytes_read > weight_bytes
    longer, same_weights = step_cost(graph, num_tokens=1, num_seqs=1, num_blocks=9)
    assert longer.bytes_read > work.bytes_read
    assert same_weights == weight_bytes


def test_what_does_not_fit_is_refused_and_takes_no_blocks(graph: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"need a context of 41 tokens, the model was loaded with 40"):
        list(measure(loaded(graph), BenchPlan(prefill=(41,), decode=0)))
    model = loaded(graph, num_blocks=7)
    with pytest.raises(OutOfMemory, match="5 KV blocks of 4 tokens were asked for, 2 of 7 are free"):
        list(measure(model, BenchPlan(prefill=(), decode=4, depth=(16,), batch=(2,))))
    assert model.engine.scheduler.pool.num_free == 7
    model = loaded(graph)
    model.engine.has_work = True
    with pytest.raises(InvalidArgument, match="idle engine"):
        list(measure(model, BenchPlan()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prefill": (0,)}, "prefill = 0: it must be at least 1"),
        ({"depth": (-1,)}, "depth = -1: it must be at least 0"),
        ({"batch": (0,)}, "batch = 0: it must be at least 1"),
        ({"repeat": 0}, "repeat = 0: it must be at least 1"),
        ({"decode": -1}, "decode = -1: it must not be negative"),
        ({"prefill": (), "decode": 0}, "there is nothing to measure"),
    ],
)
def test_sizes_without_meaning_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        BenchPlan(**wrong)


def test_a_device_that_measures_its_limits_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.engine import ceilings

    class Chip:
        def ceilings(self, threads: int) -> Mapping[str, float]:
            return {"operations_per_s": 9e11 * threads}

    monkeypatch.setattr(ceilings, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "_MATRIX", 64)
    assert isinstance(Chip(), MeasuresCeilings)
    found = measure_ceilings(Chip(), 2)
    assert found["operations_per_s"] == 1.8e12
    assert found["read_bytes_per_s"] > 0
    assert measure_ceilings(object(), 1)["operations_per_s"] > 0
