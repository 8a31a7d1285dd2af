"""Block pool and scheduler: integers only, no model."""

from __future__ import annotations

import random

import pytest

from runtime.engine.blocks import BlockPool
from runtime.engine.request import Request, RequestState
from runtime.engine.sampling_params import SamplingParams
from runtime.engine.scheduler import Scheduler
from runtime.errors import OutOfMemory


def request(name: str, num_prompt_tokens: int, max_tokens: int) -> Request:
    return Request(name, list(range(num_prompt_tokens)), SamplingParams(), max_tokens)


def advance(scheduler: Scheduler) -> list[tuple[str, int, int]]:
    """Run one step as the engine would, with token 7 sampled for every request that reached its end."""
    schedule = scheduler.schedule()
    done = []
    for part in schedule.parts:
        done.append((part.request.request_id, part.start, part.num_scheduled_tokens))
        ready = part.reaches_end
        part.request.num_computed_tokens += part.num_scheduled_tokens
        if ready:
            part.request.output_token_ids.append(7)
            if part.request.num_output_tokens == part.request.max_tokens:
                scheduler.finish(part.request, "length")
    return done


def test_blocks_come_lowest_first_and_return() -> None:
    pool = BlockPool(4, 16)
    assert pool.allocate(3) == [0, 1, 2]
    with pytest.raises(OutOfMemory, match=r"2 KV blocks of 16 tokens were asked for, 1 of 4 are free"):
        pool.allocate(2)
    held = [1, 0]
    pool.free(held)
    assert held == []
    assert pool.allocate(2) == [1, 0]
    assert (pool.blocks_for(0), pool.blocks_for(16), pool.blocks_for(17)) == (0, 1, 2)


def test_a_long_prompt_is_cut_into_chunks_and_decoding_goes_first() -> None:
    scheduler = Scheduler(BlockPool(64, 4), max_num_seqs=4, max_num_batched_tokens=8)
    scheduler.add(request("a", 3, 3))
    assert advance(scheduler) == [("a", 0, 3)]
    scheduler.add(request("b", 10, 2))
    assert advance(scheduler) == [("a", 3, 1), ("b", 0, 7)]
    assert advance(scheduler) == [("a", 4, 1), ("b", 7, 3)]
    assert advance(scheduler) == [("b", 10, 1)]
    assert not scheduler.has_work
    assert scheduler.pool.num_free == 64


def test_a_request_waits_until_blocks_for_its_whole_life_are_free() -> None:
    scheduler = Scheduler(BlockPool(3, 4), max_num_seqs=4, max_num_batched_tokens=64)
    scheduler.add(request("a", 4, 4))
    scheduler.add(request("b", 4, 4))
    assert advance(scheduler) == [("a", 0, 4)]
    assert [advance(scheduler) for _ in range(3)] == [[("a", 4, 1)], [("a", 5, 1)], [("a", 6, 1)]]
    assert advance(scheduler) == [("b", 0, 4)]


def test_every_path_gives_its_blocks_back_whatever_happens() -> None:
    rng = random.Random(5)
    scheduler = Scheduler(BlockPool(40, 4), max_num_seqs=6, max_num_batched_tokens=16)
    alive: list[Request] = []
    for n in range(2000):
        if rng.random() < 0.3:
            alive.append(request(f"r{n}", rng.randint(1, 30), rng.randint(1, 12)))
            scheduler.add(alive[-1])
        if alive and rng.random() < 0.1:
            scheduler.finish(rng.choice(alive), "aborted")
        advance(scheduler)
        alive = [r for r in alive if r.state is not RequestState.FINISHED]
        held = [b for r in alive for b in r.block_table]
        assert len(held) == len(set(held))
        assert len(held) + scheduler.pool.num_free == 40
    while scheduler.has_work:
        advance(scheduler)
    assert scheduler.pool.num_free == 40


def test_an_illegal_transition_raises() -> None:
    finished = request("a", 1, 1)
    finished.move_to(RequestState.FINISHED)
    with pytest.raises(RuntimeError, match="illegal transition FINISHED -> RUNNING"):
        finished.move_to(RequestState.RUNNING)
