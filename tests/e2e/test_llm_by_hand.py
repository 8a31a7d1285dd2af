"""The engine driven by hand, alone and among streams and batches of the same LLM."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from device_in_use import blocks_for

from runtime import LLM, RequestOutput, SamplingParams
from runtime.errors import InvalidArgument

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPT = [20, 30, 40]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_num_seqs=4) as model:
        yield model


@pytest.fixture(autouse=True)
def nothing_stays_behind(llm: LLM) -> Iterator[None]:
    yield
    assert not llm.has_unfinished_requests()
    stats = llm.loaded.engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)


def tokens_of(outputs: list[RequestOutput], request_id: str) -> tuple[int, ...]:
    return tuple(t for o in outputs if o.request_id == request_id for t in o.token_ids)


def drive(llm: LLM) -> list[RequestOutput]:
    outputs = []
    while llm.has_unfinished_requests():
        outputs += llm.step()
    return outputs


def test_requests_arrive_while_others_run(llm: LLM) -> None:
    expected = llm.generate([PROMPT, PROMPT[:2]], GREEDY)
    llm.add_request("a", PROMPT, GREEDY)
    outputs = [output for _ in range(3) for output in llm.step()]
    assert [o.request_id for o in outputs] == ["a"] * 3
    llm.add_request("b", {"prompt_token_ids": PROMPT[:2]}, GREEDY)
    outputs += drive(llm)
    assert [tokens_of(outputs, name) for name in "ab"] == [c.token_ids for c in expected]
    assert [o.request_id for o in outputs if o.finished] == ["a", "b"]
    assert llm.step() == []


def test_the_smaller_priority_goes_first() -> None:
    with LLM(max_num_seqs=1, scheduling_policy="priority") as llm:
        llm.add_request("later", PROMPT, GREEDY, priority=1)
        llm.add_request("first", PROMPT, GREEDY, priority=-1)
        assert [o.request_id for o in drive(llm) if o.finished] == ["first", "later"]


def test_whoever_steps_everybody_gets_their_own_outputs(llm: LLM) -> None:
    expected = llm.generate(PROMPT, GREEDY).token_ids
    llm.add_request("a", PROMPT, GREEDY)
    first, second = llm.stream(PROMPT, GREEDY), llm.stream(PROMPT, GREEDY.with_(max_tokens=30))
    streamed = ([next(first)], [next(second)])
    assert llm.generate(PROMPT, GREEDY).token_ids == expected
    vector = llm.embed(PROMPT)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    for output in second:
        streamed[1].append(output)
    streamed[0].extend(first)
    outputs = drive(llm)
    assert tokens_of(outputs, "a") == expected
    assert tuple(t for o in streamed[0] for t in o.token_ids) == expected
    assert tuple(t for o in streamed[1] for t in o.token_ids)[:12] == expected
    assert len(streamed[1]) == 30


def test_an_aborted_request_says_what_was_not_returned_yet(llm: LLM) -> None:
    llm.add_request("a", PROMPT, GREEDY.with_(max_tokens=100, n=2))
    returned = llm.step()
    llm.generate(PROMPT, GREEDY)
    rest = llm.abort_request("a")
    assert len(tokens_of(rest, "a")) >= 12
    assert [(o.index, o.finish_reason) for o in rest if o.finished] == [(0, "aborted"), (1, "aborted")]
    assert {o.request_id for o in returned} == {"a"}
    assert llm.abort_request("a") == []


def test_an_id_in_use_is_refused_until_its_last_output_was_returned(llm: LLM) -> None:
    llm.add_request("a", PROMPT, GREEDY)
    with pytest.raises(InvalidArgument, match="request id 'a' is in use"):
        llm.add_request("a", PROMPT, GREEDY)
    llm.generate(PROMPT, GREEDY.with_(max_tokens=40))
    with pytest.raises(InvalidArgument, match="request id 'a' is in use"):
        llm.add_request("a", PROMPT, GREEDY)
    assert len(drive(llm)) == 12
    llm.add_request("a", PROMPT, GREEDY)
    drive(llm)


def test_ids_of_others_are_not_in_the_way(llm: LLM) -> None:
    number = int(llm.generate(PROMPT, GREEDY).request_id.removeprefix("request-"))
    llm.add_request(f"request-{number + 1}", PROMPT, GREEDY)
    assert llm.generate(PROMPT, GREEDY).request_id == f"request-{number + 2}"
    drive(llm)
    with pytest.raises(InvalidArgument, match="request id '' is empty"):
        llm.add_request("", PROMPT, GREEDY)


def test_a_stream_that_is_never_read_holds_nothing(llm: LLM) -> None:
    llm.stream(PROMPT, GREEDY)
    assert not llm.loaded.engine.has_work


def test_a_streamed_sample_can_be_drawn_again(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=10, ignore_eos=True)
    outputs = list(llm.stream(PROMPT, params))
    (seed,) = {output.seed for output in outputs}
    assert 0 < seed < 2**53
    again = llm.generate(PROMPT, params.with_(seed=seed))
    assert again.token_ids == tuple(t for o in outputs for t in o.token_ids)
    assert again.seed == seed


def test_a_changed_setting_counts_for_later_requests_only(llm: LLM) -> None:
    params = GREEDY.with_()
    llm.add_request("a", PROMPT, params)
    params.max_tokens = 2
    assert len(drive(llm)) == 12


def test_texts_are_embedded_together_and_give_what_each_gives_alone(llm: LLM) -> None:
    texts = [[20 + i] * (1 + 37 * i) for i in range(7)]
    alone = [llm.embed(text, "mean") for text in texts]
    hidden_states = llm.loaded.engine.embedding_job([5], "mean").hidden_states
    forward, steps = hidden_states.forward, []

    def counted(parts, rows):  # type: ignore[no-untyped-def]
        steps.append([part.num_scheduled_tokens for part in parts])
        return forward(parts, rows)

    hidden_states.forward = counted  # type: ignore[method-assign]
    try:
        together = llm.embed(texts, "mean")
    finally:
        del hidden_states.forward
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert steps == [[1, 38, 75, 112], [149, 186, 177], [46]]
    assert llm.embed([]).shape == (0, llm.loaded.spec.hidden_size)


def test_texts_wait_for_blocks_of_each_other_and_of_requests() -> None:
    with LLM(max_num_seqs=4, max_model_len=128, num_kv_blocks=blocks_for(192)) as llm:
        texts = [[20 + i] * 100 for i in range(3)]
        llm.add_request("a", PROMPT, GREEDY)
        llm.step()
        assert llm.embed(texts).shape == (3, llm.loaded.spec.hidden_size)
        assert len(drive(llm)) == 11
