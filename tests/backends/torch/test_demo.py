"""The demo model through the kernels: the reference's tokens, alone, padded to buckets, and beside another device."""

from __future__ import annotations

import pytest

from runtime import LLM, SamplingParams

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.timeout(400)]

GREEDY = SamplingParams(temperature=0.0, max_tokens=6)
QUESTIONS = ("What is the capital of France?", "Count from 3 to 7.", "Repeat: red fox")


def answers(llm: LLM) -> list[tuple[int, ...]]:
    return [llm.chat([{"role": "user", "content": q}], GREEDY).token_ids for q in QUESTIONS]


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, ...]]:
    """What the float64 references answer."""
    with LLM(backend="cpu", place="*=host", kv_format="f32") as llm:
        assert llm.loaded.plan.summary.host_share == pytest.approx(1.0)
        return answers(llm)


def test_greedy_tokens_are_those_of_the_reference(workers_find_it: None, expected: list[tuple[int, ...]]):
    with LLM(backend="torch-cpu", fallback="forbid") as llm:
        assert answers(llm) == expected
        assert len(llm.loaded.plan.regions) == 1
        assert {p.device for p in llm.loaded.plan.placements.by_node} == {"torch-cpu"}
        assert llm.loaded.executor.counters()["host_compute_ns"] == 0


def test_steps_that_are_padded_to_buckets_give_the_same_tokens(
    workers_find_it: None, expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
):
    from runtime_torch.staging import Inbox

    sent: list[int] = []
    send = Inbox.send
    monkeypatch.setattr(Inbox, "send", lambda self, *step: sent.append(len(self.buffers)) or send(self, *step))
    with LLM(backend="torch-cpu", device_options={"capture": "on"}, max_num_seqs=4) as llm:
        assert answers(llm) == expected
    assert set(sent) == {7, 0}  # the model, and the choice of tokens, which takes rows of logits where they lie


def test_layers_on_two_devices_in_one_engine_give_the_same_tokens(
    workers_find_it: None, expected: list[tuple[int, ...]]
):
    with LLM(backend="torch-cpu", place="layers[0:2]=torch-cpu,layers[2:]=cpu,lm_head=cpu") as llm:
        plan = llm.loaded.plan
        shares = {p.device for p in plan.placements.by_node}
        assert shares == {"torch-cpu", "cpu"}
        assert plan.summary.host_share == 0.0
        assert answers(llm) == expected


def test_drawn_tokens_are_the_same_captured_and_on_the_processor(workers_find_it: None):
    """Penalties, filters and a seed of its own for every request of a batch whose size changes."""
    params = [
        SamplingParams(temperature=0.9, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=i, max_tokens=3 + 2 * i)
        for i in range(3)
    ]
    prompts = ["Count from 3 to 7.", "Repeat: red fox", "Hello"]
    texts = []
    for options in ({"backend": "cpu"}, {"backend": "torch-cpu", "device_options": {"capture": "on"}}):
        with LLM(max_num_seqs=4, **options) as llm:
            texts.append([o.token_ids for o in llm.generate(prompts, params)])
    assert texts[0] == texts[1]
