"""Block pool and scheduler: integers only, no model."""

from __future__ import annotations

import pytest

from runtime.engine.blocks import BlockPool
from runtime.engine.config import SchedulingPolicy
from runtime.engine.policy import MAX_OVERTAKEN, make_policy
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
        scheduler.computed(part)
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


def test_prompts_that_are_scored_share_the_rows_of_logits_that_a_step_has() -> None:
    scheduler = Scheduler(BlockPool(64, 4), 4, 64, max_num_logits=10)
    scheduler.add(request("a", 3, 9))
    scored = SamplingParams(prompt_logprobs=0)
    for name in "bc":
        scheduler.add(Request(name, list(range(12)), scored, 9))
    scheduler.add(request("d", 30, 9))
    rows = []

    def step() -> list[tuple[str, int]]:
        parts = scheduler.schedule().parts
        rows.append(sum(len(p.scored) + p.samples for p in parts))
        for part in parts:
            part.request.prompt_logprobs += [None] * len(part.scored)
            is_last = part.reaches_end
            scheduler.computed(part)
            if is_last:
                part.request.output_token_ids.append(7)
        return [(p.request.request_id, p.num_scheduled_tokens) for p in parts]

    assert step() == [("a", 3), ("b", 7), ("c", 1), ("d", 30)]
    assert step() == [("a", 1), ("d", 1), ("b", 5), ("c", 3)]
    assert step() == [("a", 1), ("b", 1), ("d", 1), ("c", 7)]
    assert step() == [("a", 1), ("b", 1), ("c", 1), ("d", 1)]
    assert max(rows) == 10


def test_a_request_waits_until_there_are_blocks_for_its_tokens_and_one_more_for_each_that_runs() -> None:
    scheduler = Scheduler(BlockPool(3, 4), max_num_seqs=4, max_num_batched_tokens=64)
    scheduler.add(request("a", 5, 4))
    scheduler.add(request("b", 4, 4))
    assert advance(scheduler) == [("a", 0, 5)]
    assert [advance(scheduler) for _ in range(3)] == [[("a", 5, 1)], [("a", 6, 1)], [("a", 7, 1)]]
    assert advance(scheduler) == [("b", 0, 4)]


def test_blocks_come_one_at_a_time_and_the_last_to_come_is_preempted_when_there_are_none() -> None:
    scheduler = Scheduler(BlockPool(4, 4), max_num_seqs=4, max_num_batched_tokens=64)
    a, b = request("a", 4, 6), request("b", 4, 6)
    scheduler.add(a)
    scheduler.add(b)
    assert advance(scheduler) == [("a", 0, 4), ("b", 0, 4)]
    assert [advance(scheduler) for _ in range(4)] == [[("a", 4 + i, 1), ("b", 4 + i, 1)] for i in range(4)]
    assert (len(a.block_table), len(b.block_table), scheduler.pool.num_free) == (2, 2, 0)
    assert advance(scheduler) == [("a", 8, 1)]
    assert (b.state, b.num_computed_tokens, b.block_table) == (RequestState.PREEMPTED, 0, [])
    assert advance(scheduler) == [("b", 0, 9)]  # its prompt and the tokens that it had are computed in one go
    assert b.num_output_tokens == 6
    assert (scheduler.num_preemptions, scheduler.pool.num_free) == (1, 4)


def test_a_common_beginning_is_computed_once_but_never_shared_between_salts() -> None:
    scheduler = Scheduler(BlockPool(64, 4), max_num_seqs=8, max_num_batched_tokens=64, enable_prefix_caching=True)
    scheduler.add(request("a", 11, 1))
    assert advance(scheduler) == [("a", 0, 11)]
    scheduler.add(request("b", 11, 1))
    scheduler.add(request("c", 12, 1))
    scheduler.add(request("d", 13, 1))
    other = request("other salt", 13, 1)
    other.cache_salt = "other"
    scheduler.add(other)
    # Two full blocks are known. The third of "d" is being computed for "c", so "d" waits.
    assert advance(scheduler) == [("b", 8, 3), ("c", 8, 4), ("other salt", 0, 13)]
    assert advance(scheduler) == [("d", 12, 1)]
    assert scheduler.prefix_cache_hits == 8 + 8 + 12
    assert (scheduler.pool.num_free, scheduler.pool.num_cached) == (64, 3 + 3)


def test_a_request_may_leave_the_cache_unread_and_others_still_find_what_it_computed() -> None:
    scheduler = Scheduler(BlockPool(64, 4), max_num_seqs=8, max_num_batched_tokens=64, enable_prefix_caching=True)
    for name, tokens in (("a", 9), ("unread", 13), ("b", 13)):
        scheduler.add(request(name, tokens, 1))
        scheduler.waiting[-1].skip_reading_prefix_cache = name == "unread"
    # "unread" does not wait for what "a" computes, and nothing of "b" is computed a third time.
    assert advance(scheduler) == [("a", 0, 9), ("unread", 0, 13)]
    assert advance(scheduler) == [("b", 12, 1)]
    assert (scheduler.prefix_cache_hits, scheduler.pool.num_cached) == (12, 3)


def test_who_arrives_together_with_the_same_prompt_waits_for_the_first_to_compute_it() -> None:
    scheduler = Scheduler(BlockPool(64, 4), max_num_seqs=8, max_num_batched_tokens=10, enable_prefix_caching=True)
    for name in "abc":
        scheduler.add(request(name, 17, 1))
    assert advance(scheduler) == [("a", 0, 10)]
    assert advance(scheduler) == [("a", 10, 7)]
    assert advance(scheduler) == [("b", 16, 1), ("c", 16, 1)]


def test_the_least_recently_used_content_is_evicted_first_and_the_end_of_a_sequence_before_its_beginning() -> None:
    pool = BlockPool(4, 4)
    first = pool.allocate(2)
    for block_id, name in zip(first, (b"a", b"ab")):
        pool.register(block_id, name)
    second = pool.allocate(1)
    pool.register(second[0], b"c")
    pool.free(second)
    pool.free(first)
    assert (pool.num_free, pool.num_cached) == (4, 3)
    assert pool.find([b"a", b"ab", b"abc"]) == [0, 1]
    assert pool.allocate(3) == [3, 2, 1]  # the empty one, then "c", then "ab"
    assert pool.find([b"a", b"ab"]) == [0]
    pool.share([0])
    assert pool.num_free == 0
    pool.check()


def test_freeing_a_block_twice_raises() -> None:
    pool = BlockPool(2, 4)
    (block_id,) = pool.allocate(1)
    pool.free([block_id])
    with pytest.raises(RuntimeError, match="KV block 0 was freed more often than it was taken"):
        pool.free([block_id])


def order_of_admission(policy: SchedulingPolicy, requests: list[Request]) -> list[str]:
    scheduler = Scheduler(BlockPool(64, 4), 1, 64, policy=make_policy(policy))
    for r in requests:
        scheduler.add(r)
    order = []
    while scheduler.has_work:
        order += [name for name, start, _ in advance(scheduler) if start == 0]
    return order


def test_priorities_decide_who_goes_first_but_nobody_is_overtaken_for_ever() -> None:
    requests = [request(f"r{i}", 4, 1) for i in range(50)]
    requests[40].priority = -10
    assert order_of_admission("priority", requests)[:3] == ["r40", "r0", "r1"]
    late = request("late", 4, 1)
    late.priority = 10
    order = order_of_admission("priority", [late, *(request(f"r{i}", 4, 1) for i in range(100))])
    assert order.index("late") == MAX_OVERTAKEN


def test_fairness_counts_the_tokens_of_each_tenant() -> None:
    def of(tenant: str, name: str, num_prompt_tokens: int) -> Request:
        r = request(name, num_prompt_tokens, 1)
        r.tenant = tenant
        return r

    crowd = [of("a", f"a{i}", 20) for i in range(4)]
    order = order_of_admission("fair", [*crowd, of("b", "b0", 10), of("b", "b1", 10), of("b", "b2", 10)])
    assert order == ["a0", "b0", "b1", "a1", "b2", "a2", "a3"]


def test_an_illegal_transition_raises() -> None:
    finished = request("a", 1, 1)
    finished.move_to(RequestState.FINISHED)
    with pytest.raises(RuntimeError, match="illegal transition FINISHED -> RUNNING"):
        finished.move_to(RequestState.RUNNING)
