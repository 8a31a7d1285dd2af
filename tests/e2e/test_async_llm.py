"""AsyncLLM on the packaged demo model: streams, ends, limits, deaths and a stuck step."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from device_in_use import blocks_for

from runtime import LLM, RequestOutput, SamplingParams
from runtime.engine import async_llm
from runtime.engine.async_llm import AsyncLLM
from runtime.engine.config import EngineConfig
from runtime.engine.links import ProcessLink, ThreadLink
from runtime.engine.request import RequestTimes
from runtime.engine.stats import EngineStats
from runtime.errors import DeviceLost, EngineDied, InvalidArgument, QueueFull, RuntimeFault

GREEDY = SamplingParams(temperature=0.0, max_tokens=20)
ENDLESS = SamplingParams(temperature=0.0, ignore_eos=True)
Body = Callable[[AsyncLLM], Awaitable[Any]]


def run(body: Body, *, process: bool = False, **config: Any) -> Any:
    async def main() -> Any:
        llm = await AsyncLLM.start(EngineConfig(**config), process=process)
        try:
            return await asyncio.wait_for(body(llm), 60)
        finally:
            await llm.close()

    return asyncio.run(main())


async def collect(
    llm: AsyncLLM, prompt: list[int], params: SamplingParams = GREEDY, **more: Any
) -> list[RequestOutput]:
    return [output async for output in llm.generate(prompt, params, **more)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("process", [False, True])
def test_streams_of_many_requests_make_what_each_gets_alone(process: bool) -> None:
    batch = [[20 + i, 30, 40] for i in range(6)]
    with LLM() as llm:
        expected = [c.token_ids for c in llm.generate(batch, GREEDY)]  # type: ignore[union-attr]
        vector, status = llm.embed(batch[0]), llm.status

    async def body(llm: AsyncLLM) -> None:
        assert (llm.state, llm.max_model_len, llm.max_num_seqs) == ("ready", 1024, 16)
        assert llm.status[-1].split(",")[0] == status[-1].split(",")[0]
        assert llm.has_chat_template
        assert llm.stats().num_blocks == llm.stats().num_free_blocks > 0
        streams = await asyncio.gather(*(collect(llm, prompt) for prompt in batch))
        assert [tuple(t for o in s for t in o.token_ids) for s in streams] == expected
        assert [(s[0].num_prompt_tokens, s[-1].finish_reason in ("stop", "length")) for s in streams] == [(3, True)] * 6
        samples = await collect(llm, batch[0], SamplingParams(n=3, max_tokens=4, seed=1))
        assert {o.index for o in samples} == {0, 1, 2}
        assert sum(o.finish_reason is not None for o in samples) == 3
        np.testing.assert_allclose(await llm.embed(batch[0]), vector, atol=1e-6)
        await llm.reset_prefix_cache()
        stats = llm.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)
        assert sum(stats.requests_finished.values()) == 9

    run(body, process=process)


def test_whoever_leaves_frees_the_blocks_within_a_step() -> None:
    async def body(llm: AsyncLLM) -> None:
        def free() -> bool:
            return llm.stats().num_free_blocks == llm.stats().num_blocks and llm.stats().num_running == 0

        closed = llm.generate([5, 6], ENDLESS)
        await closed.__anext__()
        assert not free()
        steps = llm.stats().steps
        await closed.aclose()
        await until(free)
        assert llm.stats().steps <= steps + 3
        task = asyncio.create_task(collect(llm, [5, 6], ENDLESS))
        await until(lambda: llm.stats().num_running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(free)
        dropped = llm.generate([5, 6], ENDLESS)
        await dropped.__anext__()
        del dropped
        gc.collect()
        await until(free)
        outputs = []
        async for output in llm.generate([5, 6], ENDLESS, request_id="mine"):
            outputs.append(output)
            await llm.abort("mine")
        assert outputs[-1].finish_reason == "aborted"
        assert llm.stats().requests_finished["aborted"] == 4

    run(body)


def test_bad_requests_are_refused_at_the_call_and_a_late_one_times_out() -> None:
    async def body(llm: AsyncLLM) -> None:
        with pytest.raises(InvalidArgument, match="prompt has 2000 tokens, context is 1024"):
            llm.generate([5] * 2000)
        with pytest.raises(InvalidArgument, match="token id 99999"):
            llm.generate([99999])
        with pytest.raises(InvalidArgument, match="0 tokens"):
            await llm.embed([])
        first = llm.generate([5], ENDLESS, request_id="mine")
        with pytest.raises(InvalidArgument, match="'mine' is in use"):
            llm.generate([5], request_id="mine")
        await first.aclose()
        timed = await collect(llm, [5, 6], ENDLESS, timeout_s=0.05)
        assert timed[-1].finish_reason == "timeout"
        nothing_left = dict.fromkeys(range(llm.vocab_size), -np.inf)
        failed, fine = await asyncio.gather(
            collect(llm, [5], GREEDY.with_(logit_bias=nothing_left)), collect(llm, [5], GREEDY)
        )
        assert (failed[-1].finish_reason, fine[-1].error) == ("error", None)
        assert "leave no token to choose" in (failed[-1].error or "")

    run(body)


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    async def body(llm: AsyncLLM) -> None:
        streams = [llm.generate([5], ENDLESS) for _ in range(5)]
        with pytest.raises(QueueFull, match=r"3 requests wait, 3 may \(max_queued_requests\)") as refused:
            llm.generate([5])
        assert refused.value.retryable
        assert refused.value.retry_after_s >= 1
        for stream in streams:
            await stream.aclose()
        assert (await collect(llm, [5]))[-1].finish_reason in ("stop", "length")

    run(body, max_num_seqs=2, max_queued_requests=3)


def test_closing_lets_requests_finish_and_refuses_new_ones() -> None:
    async def body(llm: AsyncLLM) -> None:
        task = asyncio.create_task(collect(llm, [5, 6], ENDLESS.with_(max_tokens=100)))
        await until(lambda: llm.stats().num_running == 1)
        closing = asyncio.create_task(llm.close(drain_s=30))
        await asyncio.sleep(0)
        assert llm.state == "closed"
        with pytest.raises(EngineDied, match="shutting down"):
            llm.generate([5])
        assert (await task)[-1].finish_reason == "length"
        await closing

    run(body)


def test_what_is_not_finished_when_the_time_to_drain_is_over_is_aborted() -> None:
    async def body(llm: AsyncLLM) -> None:
        task = asyncio.create_task(collect(llm, [5, 6], ENDLESS))
        await until(lambda: llm.stats().num_running == 1)
        await llm.close(drain_s=0.05)
        assert (await task)[-1].finish_reason == "aborted"

    run(body)


def test_an_embedding_gets_blocks_although_requests_would_take_them_all() -> None:
    async def body(llm: AsyncLLM) -> None:
        texts = [[20 + i] * 40 for i in range(12)]
        streams = [asyncio.create_task(collect(llm, text, ENDLESS.with_(max_tokens=60))) for text in texts]
        await until(lambda: llm.stats().num_running > 1)
        vector = await llm.embed([7] * 120)
        assert len(vector) > 0
        assert not all(stream.done() for stream in streams)
        assert all(outputs[-1].finish_reason == "length" for outputs in await asyncio.gather(*streams))
        stats = llm.stats()
        assert stats.num_free_blocks == stats.num_blocks == blocks_for(256)

    run(body, max_model_len=128, num_kv_blocks=blocks_for(256))


def test_an_embedding_that_nobody_waits_for_is_not_computed() -> None:
    async def body(llm: AsyncLLM) -> None:
        assert isinstance(llm._link, ThreadLink)
        assert llm._link.loaded is not None
        hidden_states = llm._link.loaded.engine._hidden_states
        assert hidden_states is not None
        forward, computed, gate = hidden_states.forward, [], threading.Event()

        def counted(parts: Any, rows: Any) -> Any:
            assert gate.wait(10)
            computed.extend((part.request.prompt_token_ids[0], part.num_scheduled_tokens) for part in parts)
            return forward(parts, rows)

        hidden_states.forward = counted  # type: ignore[method-assign]
        first, second, third = (asyncio.create_task(llm.embed([token] * 96)) for token in (5, 6, 7))
        await until(lambda: len(llm._calls) == 3)
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        gate.set()
        assert len(await third) > 0
        assert sum(count for token, count in computed if token == 5) <= 32  # the chunk that had begun
        assert [(token, count) for token, count in computed if token != 5] == [(7, 32)] * 3
        assert llm.stats().num_free_blocks == llm.stats().num_blocks
        assert not llm._calls

    run(body, max_num_batched_tokens=32, max_num_seqs=4)


def test_a_lost_device_ends_an_engine_in_this_process_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    async def body(llm: AsyncLLM) -> None:
        assert isinstance(llm._link, ThreadLink)
        assert llm._link.loaded is not None

        def lose(parts: Any) -> Any:
            raise DeviceLost("the device fell off the bus")

        llm._link.loaded.engine.runner.run = lose  # type: ignore[method-assign]
        with pytest.raises(EngineDied, match="the engine died: the device fell off the bus"):
            await collect(llm, [5])
        assert llm.state == "closed"
        with pytest.raises(EngineDied, match="load the model anew"):
            llm.generate([5])

    run(body)


def test_a_killed_engine_fails_its_requests_with_the_signal_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    async def body(llm: AsyncLLM) -> None:
        await collect(llm, [5, 6])
        before = llm.stats()
        stream = llm.generate([5, 6], ENDLESS)
        await stream.__anext__()
        assert isinstance(llm._link, ProcessLink)
        os.kill(llm._link.process.pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match=r"killed by signal 9 \(SIGKILL\)"):
            async for _ in stream:
                pass
        assert llm.state == "restarting"
        with pytest.raises(EngineDied) as refused:
            llm.generate([5])
        assert refused.value.retryable
        await until(lambda: llm.state == "ready")
        assert (llm.stats().num_blocks, llm.stats().restarts) == (before.num_blocks, 1)
        assert (await collect(llm, [5, 6]))[-1].finish_reason in ("stop", "length")
        after = llm.stats()
        assert after.restarts == 1
        assert after.generation_tokens > before.generation_tokens
        assert after.steps > before.steps

    run(body, process=True)


@pytest.mark.slow
def test_an_engine_that_keeps_dying_is_given_up_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_llm, "MAX_RESTARTS", 2)
    monkeypatch.setattr(async_llm, "_BACKOFF_S", 0.01)

    async def body(llm: AsyncLLM) -> None:
        for _ in range(3):
            assert isinstance(llm._link, ProcessLink)
            os.kill(llm._link.process.pid, signal.SIGKILL)
            await until(lambda: llm.state != "ready")
            await until(lambda: llm.state != "restarting")
        assert llm.state == "closed"
        with pytest.raises(EngineDied, match="started again 2 times"):
            llm.generate([5])

    run(body, process=True)


def test_a_stuck_step_is_reported_with_the_stack_of_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    async def body(llm: AsyncLLM) -> None:
        assert isinstance(llm._link, ThreadLink)
        assert llm._link.loaded is not None
        runner = llm._link.loaded.engine.runner
        compute = runner.run

        def a_step_that_hangs(parts: Any) -> Any:
            time.sleep(1.0)
            return compute(parts)

        runner.run = a_step_that_hangs  # type: ignore[method-assign]
        task = asyncio.create_task(collect(llm, [5], GREEDY.with_(max_tokens=1)))
        await until(lambda: llm.state == "stuck" and llm.stuck_report != "")
        assert "the limit is 0.2 s" in llm.stuck_report
        assert "a_step_that_hangs" in llm.stuck_report
        await task
        assert llm.state == "ready"

    run(body, step_timeout_s=0.2)


def test_the_stack_of_an_engine_in_a_process_of_its_own() -> None:
    async def body(llm: AsyncLLM) -> None:
        stack = await asyncio.to_thread(llm._link.stack)
        assert "in serve" in stack

    run(body, process=True)


def test_the_engine_ends_with_its_front() -> None:
    script = (
        "import asyncio, os\n"
        "from runtime.engine.async_llm import AsyncLLM\n"
        "from runtime.engine.config import EngineConfig\n"
        "async def main():\n"
        "    llm = await AsyncLLM.start(EngineConfig(), process=True)\n"
        "    print(llm._link.process.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    front = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    pid = int(front.stdout)
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("the engine still runs")


@pytest.mark.parametrize("process", [False, True])
def test_a_model_that_cannot_be_loaded_is_an_error_of_start(process: bool) -> None:
    async def main() -> None:
        await AsyncLLM.start(EngineConfig(max_model_len=4096), process=process)

    with pytest.raises(InvalidArgument, match="the model was made for 1024"):
        asyncio.run(main())


def test_outputs_and_stats_travel_between_processes_whole_and_without_the_names_of_their_fields() -> None:
    output = RequestOutput("a", "é", (1, 2), finish_reason="stop", index=3, times=RequestTimes(0.5, None, 0.25, 1, 9))
    for item in (output, EngineStats(steps=7, requests_finished={"stop": 2})):
        data = pickle.dumps(item, 5)
        assert pickle.loads(data) == item
        assert replace(item) == item
        assert b"finish_reason" not in data
        assert b"steps" not in data


def test_errors_travel_between_processes_whole() -> None:
    error = QueueFull("full", remedy="wait", retry_after_s=3)
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, RuntimeFault)
    assert (str(again), again.retry_after_s) == ("full; wait", 3)
