"""Random lives of requests: whatever happens, the books of the block pool agree and nobody gets another's tokens."""

from __future__ import annotations

import gc
import random
import time
import weakref
from collections import Counter
from typing import Any

import pytest
from null_engine import RememberingRunner, expected_tokens, null_engine

from runtime.engine.blocks import BlockPool
from runtime.engine.policy import make_policy
from runtime.engine.request import Request, RequestOutput, RequestState, RequestTimes
from runtime.engine.sampling_params import SamplingParams
from runtime.engine.scheduler import Scheduler

BLOCK_SIZE = 4


class World:
    """An engine, every request that was ever sent to it, and what came back."""

    def __init__(self, seed: int, **scheduler: Any) -> None:
        self.rng = random.Random(seed)
        self.seen = Counter([policy := ("fcfs", "priority", "fair")[seed % 3]])
        pool = BlockPool(scheduler.pop("num_blocks", 24), BLOCK_SIZE)
        self.scheduler = Scheduler(pool, 5, 16, policy=make_policy(policy), **scheduler)
        failing = random.Random(seed + 1)
        copies = self.rng.random() < 0.7
        self.engine = null_engine(self.scheduler, failing=failing, max_model_len=64, can_copy_blocks=copies)
        self.alive: dict[str, tuple[Request, ...]] = {}
        self.outputs: dict[tuple[str, int], list[RequestOutput]] = {}
        self.times: list[RequestTimes] = []
        self.reasons: dict[str, int] = {}
        self.prefixes = [[self.rng.randrange(20, 200) for _ in range(30)] for _ in range(3)]

    def event(self) -> None:
        draw = self.rng.random()
        if draw < 0.16:
            self.arrive()
        elif draw < 0.20 and self.alive:
            for output in self.engine.abort(self.rng.choice(list(self.alive))):
                self.take(output)
        elif draw < 0.201:
            self.engine.reset_prefix_cache()
        else:
            for output in self.engine.step():
                self.take(output)
        self.check()

    def arrive(self) -> None:
        rng = self.rng
        if len(self.alive) > 12:
            return
        prompt = [*rng.choice(self.prefixes)[: rng.randint(0, 30)], rng.randrange(20, 200)]
        if rng.random() < 0.04:
            prompt[0] = rng.choice([7, 11])
        params = SamplingParams(
            max_tokens=rng.randint(1, 30),
            seed=rng.randrange(5),
            n=rng.choice([1, 1, 1, 2, 3]),
            ignore_eos=True,
            stop_token_ids=range(20, rng.choice([20, 20, 30])),
        )
        timeout_s = rng.choice([None, None, None, 0.0, 0.002])
        samples = self.engine.add_request(
            prompt,
            params,
            tenant=rng.choice("ab"),
            cache_salt=rng.choice("xy"),
            skip_reading_prefix_cache=rng.random() < 0.1,
            priority=rng.randint(-2, 2),
            timeout_s=timeout_s,
        )
        self.alive[samples[0].request_id] = samples

    def take(self, output: RequestOutput) -> None:
        request = self.alive[output.request_id][output.index]
        outputs = self.outputs.setdefault((output.request_id, output.index), [])
        assert not outputs or outputs[-1].finish_reason is None
        outputs.append(output)
        assert (output.times is None) == (output.finish_reason is None)
        if output.times is None or output.finish_reason is None:
            return
        self.times.append(output.times)
        self.reasons[output.finish_reason] = self.reasons.get(output.finish_reason, 0) + 1
        assert request.finish_reason == output.finish_reason
        assert (output.error is not None) == (output.finish_reason == "error")
        token_ids = [t for o in outputs for t in o.token_ids]
        assert token_ids == expected_tokens(request.prompt_token_ids, request.seed, len(token_ids))
        if output.finish_reason == "length":
            assert len(token_ids) == request.max_tokens
        ends = [self.outputs.get((output.request_id, r.index), []) for r in self.alive[output.request_id]]
        if all(e and e[-1].finish_reason is not None for e in ends):
            del self.alive[output.request_id]

    def check(self) -> None:
        pool, scheduler = self.scheduler.pool, self.scheduler
        pool.check()
        held: dict[int, int] = {}
        for samples in self.alive.values():
            for request in samples:
                assert (request.state is RequestState.RUNNING) == (request in scheduler.running)
                assert bool(request.block_table) == (request.state is RequestState.RUNNING)
                for block_id in request.block_table:
                    held[block_id] = held.get(block_id, 0) + 1
                self.seen["swapped"] += request.num_swapped_blocks > 0
            self.seen["shared"] += any(held[b] > 1 for r in samples for b in r.block_table)
        assert all(pool.references(b) == held.get(b, 0) for b in range(pool.num_blocks))
        assert pool.num_free + len(held) == pool.num_blocks
        assert pool.num_cached <= pool.num_free
        assert len(scheduler.running) <= scheduler.max_num_seqs
        assert [r.arrival for r in scheduler.waiting] == sorted(r.arrival for r in scheduler.waiting)


@pytest.mark.parametrize("num_events", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_events_leave_a_full_pool(num_events: int) -> None:
    reasons: dict[str, int] = {}
    preemptions = hits = 0
    seen: Counter[str] = Counter()
    for seed in range(num_events // 2500):
        caching, swap = bool(seed & 1), 12 * (seed >> 1 & 1)
        world = World(seed, enable_prefix_caching=caching, num_swap_blocks=swap)
        for _ in range(2500):
            world.event()
        while world.engine.has_work:
            for output in world.engine.step():
                world.take(output)
        world.check()
        assert not world.alive
        assert world.scheduler.pool.num_free == 24
        assert world.scheduler.num_free_swap_blocks == swap
        seen.update(world.seen)
        preemptions += world.scheduler.num_preemptions
        hits += world.scheduler.prefix_cache_hits
        stats = world.engine.stats()
        assert stats.requests_finished == {"stop": 0} | world.reasons
        assert stats.preemptions == sum(times.num_preemptions for times in world.times)
        assert stats.prefill_seconds == pytest.approx(sum(times.prefill_s or 0.0 for times in world.times))
        assert stats.decode_seconds == pytest.approx(sum(times.decode_s for times in world.times))
        assert sum(stats.steps_by_tokens) == stats.steps
        for reason, count in world.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    assert set(reasons) == {"length", "stop", "aborted", "error", "timeout"}
    assert set(seen) == {"fcfs", "priority", "fair", "swapped", "shared"}
    assert min(seen["swapped"], seen["shared"]) > num_events / 100
    assert preemptions > 50
    assert hits > 500


def test_a_request_knows_how_long_it_waited_and_how_long_its_tokens_took() -> None:
    engine = null_engine(Scheduler(BlockPool(24, BLOCK_SIZE), 1, 16))
    params = SamplingParams(max_tokens=3, seed=1, ignore_eos=True)
    began = time.monotonic()
    first, waiting = [engine.add_request([20] * 40, params)[0] for _ in range(2)]
    compute = engine.runner.run

    def slowly(parts: Any) -> Any:
        time.sleep(0.01)
        return compute(parts)

    engine.runner.run = slowly  # type: ignore[method-assign]
    outputs = [output for _ in range(5) for output in engine.step()]
    times = outputs[-1].times
    assert times is not None
    assert 0 <= times.queue_s < 0.01
    assert times.prefill_s is not None
    assert times.prefill_s >= 0.03  # the prompt takes three steps, the first token comes with the last
    assert times.decode_s >= 0.02
    assert times.queue_s + times.prefill_s + times.decode_s < time.monotonic() - began
    assert (times.num_preemptions, times.max_tokens) == (0, 3)
    (output,) = engine.abort(waiting.request_id)
    assert output.times is not None
    assert output.times.queue_s >= 0.05
    assert (output.times.prefill_s, output.times.decode_s) == (None, 0.0)
    stats = engine.stats()
    assert (stats.steps, stats.step_tokens, stats.step_sequences, stats.longest_sequence) == (5, 42, 5, 42)
    assert stats.steps_by_tokens[:4] == (2, 1, 2, 0)
    assert first.state is RequestState.FINISHED


def test_nothing_is_kept_of_finished_requests() -> None:
    engine = null_engine(Scheduler(BlockPool(24, BLOCK_SIZE), 4, 16, enable_prefix_caching=True))
    references = []
    for i in range(500):
        (request,) = engine.add_request([20 + i % 100] * 9, SamplingParams(max_tokens=2, seed=1), timeout_s=1000)
        references.append(weakref.ref(request))
        del request
        while engine.has_work:
            engine.step()
    gc.collect()
    assert sum(reference() is not None for reference in references) < 100


def test_a_tiny_pool_serves_many_long_requests_with_preemptions_and_the_same_tokens() -> None:
    for swap in (0, 100):
        scheduler = Scheduler(BlockPool(17, BLOCK_SIZE), 16, 64, enable_prefix_caching=True, num_swap_blocks=swap)
        engine = null_engine(scheduler)
        for i in range(16):
            prompt = [20 + i] * 9
            engine.add_request(prompt, SamplingParams(max_tokens=40, seed=i, ignore_eos=True), f"r{i}")
        tokens: dict[str, list[int]] = {}
        while engine.has_work:
            for output in engine.step():
                tokens.setdefault(output.request_id, []).extend(output.token_ids)
        assert engine.stats().preemptions > 5
        assert tokens == {f"r{i}": expected_tokens([20 + i] * 9, i, 40) for i in range(16)}
        assert isinstance(engine.runner, RememberingRunner)
        computed = engine.runner.num_tokens
        assert computed == 16 * 48 if swap else computed > 16 * 48


def test_staggered_requests_take_as_many_steps_as_the_longest_and_not_as_all_together() -> None:
    scheduler = Scheduler(BlockPool(32 * 16, BLOCK_SIZE), 32, 256)
    engine = null_engine(scheduler)
    lengths = [40 - i // 2 for i in range(32)]
    tokens: dict[str, list[int]] = {}
    num_steps = 0
    while engine.has_work or num_steps < 32:
        if num_steps < 32:
            params = SamplingParams(max_tokens=lengths[num_steps], seed=num_steps, ignore_eos=True)
            engine.add_request([20 + num_steps] * 9, params, f"r{num_steps}")
        for output in engine.step():
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
        num_steps += 1
    assert tokens == {f"r{i}": expected_tokens([20 + i] * 9, i, n) for i, n in enumerate(lengths)}
    assert max(i + n for i, n in enumerate(lengths)) == 56
    assert num_steps == 56 < sum(lengths) / 18
