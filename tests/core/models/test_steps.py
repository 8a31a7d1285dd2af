"""Small random models compute what transformers 5.23 computed for the same weights, however the work is cut."""

from __future__ import annotations

import numpy as np
import pytest
from random_model import random_model
from steps import ExecutorRunner, generate_greedily, logits_in_chunks, open_runner, ragged_inputs, shuffled_blocks

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46]
EXPECTED = {
    "llama": ([0, 71, 71, 59, 62, 0, 104, 1, 68, 51, 68, 33, 114, 111, 114, 25], [3.4634, 0.9543, -2.5564, -0.9105]),
    "gemma2": ([37, 97, 22, 73, 124, 55, 21, 31, 19, 31, 19, 31, 19, 31, 19, 23], [1.0293, -0.0037, 1.2614, 0.07]),
    "qwen2_moe": (
        [129, 45, 107, 56, 104, 4, 115, 77, 68, 95, 93, 56, 93, 72, 25, 90],
        [-0.1846, -2.0364, -0.1447, 1.6988],
    ),
    "gpt_oss": (
        [83, 104, 64, 120, 86, 77, 30, 115, 0, 95, 120, 0, 109, 12, 77, 77],
        [-0.8667, -1.1797, 0.6507, -1.0986],
    ),
}
"""Name -> (greedy tokens after the prompt, first logits of the prompt's last token)."""


@pytest.mark.parametrize("name", EXPECTED)
def test_greedy_tokens_and_logits_are_those_of_transformers(name: str) -> None:
    tokens, logits = EXPECTED[name]
    runner = open_runner(random_model(name), max_model_len=32)
    found, chosen_from = generate_greedily(runner, PROMPT, len(tokens))
    assert found == tokens
    assert chosen_from[0, :4].tolist() == pytest.approx(logits, abs=2e-4)


@pytest.mark.parametrize("name", EXPECTED)
def test_chunks_and_single_tokens_give_the_logits_of_one_step(name: str) -> None:
    runner = open_runner(random_model(name), max_model_len=32)
    whole = logits_in_chunks(runner, PROMPT, len(PROMPT))
    for chunk in (4, 1):
        np.testing.assert_allclose(logits_in_chunks(runner, PROMPT, chunk, seed=chunk), whole, atol=1e-9)


def test_sequences_of_one_step_do_not_see_each_other() -> None:
    runner = open_runner(random_model("gpt_oss"), max_model_len=32)
    alone = [logits_in_chunks(runner, prompt, 32) for prompt in (PROMPT, PROMPT[4:9])]
    blocks = shuffled_blocks(runner, 3)
    runner.run(ragged_inputs([(PROMPT[:7], 0, blocks[::2])], runner.block_size))
    parts = [(PROMPT[7:], 7, blocks[::2]), (PROMPT[4:9], 0, blocks[1::2])]
    together = runner.run(ragged_inputs(parts, runner.block_size))
    np.testing.assert_allclose(together, np.concatenate([alone[0][7:], alone[1]]), atol=1e-9)


def test_executor_computes_the_same_with_composites_whole_and_taken_apart() -> None:
    model = random_model("llama")
    expected = logits_in_chunks(open_runner(model, max_model_len=32), PROMPT, 4)
    for composites in (True, False):

        def make(*given: object, composites: bool = composites) -> ExecutorRunner:
            return ExecutorRunner(*given, composites=composites)  # type: ignore[arg-type]

        found = logits_in_chunks(open_runner(model, max_model_len=32, make=make), PROMPT, 4)
        np.testing.assert_allclose(found, expected, atol=1e-4)
