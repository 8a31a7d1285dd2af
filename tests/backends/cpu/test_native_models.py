"""Whole models on the native device: the tokens of transformers, the same bits however the work is cut."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_device import open_device
from steps import ExecutorRunner, generate_greedily, logits_in_chunks, open_runner, ragged_inputs, shuffled_blocks

from runtime.errors import InvalidArgument
from runtime.executor import Executor, make_plan
from runtime.models import load_weight_bytes
from runtime_cpu.device import NativeDevice
from runtime_cpu.native import Library

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "core/models"))
from random_model import random_model
from test_steps import EXPECTED, PROMPT

LONG = [int(i) for i in np.random.default_rng(7).integers(3, 99, 150)]


class NativeRunner(ExecutorRunner):
    """The executor on a native device, with nothing left to the host."""

    def __init__(self, device: NativeDevice, graph: Any, recipes: Any, data: Any, num_blocks: int) -> None:
        sizes = {"B": num_blocks}
        self.graph, self.num_blocks, self.device = graph, num_blocks, device
        self.block_size = next(iter(graph.states.values())).spec.resolve(sizes)[2]
        self.plan = make_plan(graph, {"cpu": device.manifest}, fallback="forbid", state_dims=sizes)

        def weight(name: str) -> tuple[Any, memoryview]:
            return recipes[name].spec, memoryview(load_weight_bytes(recipes[name], data))

        self.executor = Executor(self.plan, {"cpu": device}, weight, sizes)


def on(device: NativeDevice) -> Callable[..., NativeRunner]:
    return lambda *given: NativeRunner(device, *given)


def native(name: str, device: NativeDevice) -> NativeRunner:
    return open_runner(random_model(name), max_model_len=256, block_size=64, make=on(device))


@pytest.mark.parametrize("name", EXPECTED)
def test_greedy_tokens_and_logits_are_those_of_transformers(devices: dict[str, NativeDevice], name: str) -> None:
    tokens, logits = EXPECTED[name]
    for device in devices.values():
        runner = open_runner(random_model(name), max_model_len=32, block_size=32, make=on(device))
        found, chosen_from = generate_greedily(runner, PROMPT, len(tokens))
        assert found == tokens
        assert chosen_from[0, :4].tolist() == pytest.approx(logits, abs=2e-4)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_step_is_one_program_and_chunks_change_no_bit(device: NativeDevice, name: str) -> None:
    runner = native(name, device)
    assert len(runner.plan.regions) == 1
    whole = logits_in_chunks(runner, LONG, len(LONG))
    for chunk in (64, 37, 1):
        assert np.array_equal(logits_in_chunks(runner, LONG, chunk, seed=chunk), whole)


@pytest.mark.parametrize("name", EXPECTED)
def test_neighbours_and_threads_change_no_bit(library: Library, name: str) -> None:
    found = []
    for threads in (1, 2, 3):
        device = open_device(library, threads=threads)
        runner = native(name, device)
        blocks = shuffled_blocks(runner, 3)
        alone = [runner.run(ragged_inputs([(ids, 0, blocks[:3])], 64)) for ids in (LONG[:90], LONG[100:107])]
        parts = [(LONG[:90], 0, blocks[:3]), (LONG[100:107], 0, blocks[3:])]
        together = runner.run(ragged_inputs(parts, 64))
        assert np.array_equal(together, np.concatenate(alone))
        found.append(together)
        runner.executor.close()
        device.close()
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_linears_share_preparation_and_residuals_are_absorbed(device: NativeDevice) -> None:
    runner = native("llama", device)
    (executable,) = runner.executor._executables
    codes = [step.code for step in executable._layout.steps]  # type: ignore[attr-defined]
    assert codes.count("add") == 0
    assert codes.count("rope_table") == 1
    linears = [step for step in executable._layout.steps if step.code == "linear"]  # type: ignore[attr-defined]
    assert sum(step.sizes[0] for step in linears) == 3 * 4 + 1, "q k v, o, gate up, down prepare once each; the head"
    assert sum(step.sizes[1] for step in linears) == 3 * 3, "k and v join q, up joins gate"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"token_ids": [999, 1, 2]}, r"token_ids\[0\] = 999 is outside 0..\d+"),
        ({"positions": [-1, 0, 1]}, r"positions\[0\] = -1"),
        ({"slot_mapping": [0, 1, 100000]}, r"slot_mapping\[2\] = 100000 is outside"),
        ({"logits_rows": [0, 1, 3]}, r"logits_rows|rows\[2\] = 3 is outside 0..2"),
    ],
)
def test_bad_indices_are_refused_and_the_device_goes_on(
    device: NativeDevice, changed: dict[str, list[int]], message: str
) -> None:
    runner = native("llama", device)
    inputs = ragged_inputs([([5, 6, 7], 0, [1, 2])], 64)
    before = runner.run(inputs)
    with pytest.raises(InvalidArgument, match=message):
        runner.run(inputs | {name: np.array(values) for name, values in changed.items()})
    assert np.array_equal(runner.run(inputs), before)
