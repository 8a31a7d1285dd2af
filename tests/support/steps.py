"""Drives a step graph as an engine would: blocks for each sequence, ragged steps, logits by row.

`HostRunner` walks the graph with the float64 references; anything else that has `run(inputs) -> logits` and
`block_size` can take its place.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from runtime.backend import ReferenceDevice
from runtime.dtypes import TensorSpec
from runtime.executor import Executor, make_plan
from runtime.graph import Graph
from runtime.models import WeightRecipe, build_graph, describe_model, load_weight_bytes, weight_source
from runtime.ops import CATALOGUE, EXACT, Catalogue


class Runner(Protocol):
    """Runs one step."""

    block_size: int
    num_blocks: int

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray: ...


class HostRunner:
    """The references, in float64, over weights decoded once."""

    def __init__(
        self, graph: Graph, recipes: dict[str, WeightRecipe], data: Callable[[str], memoryview], num_blocks: int
    ):
        self.graph = graph
        self.num_blocks = num_blocks
        self.values: dict[str, Any] = {}
        for name, value in graph.weights.items():
            decoded = value.spec.format.decode(load_weight_bytes(recipes[name], data), value.spec.resolve({}))
            self.values[name] = decoded.astype(np.float64)
        for name, value in graph.constants.items():
            self.values[name] = np.asarray(value.data, dtype=np.float64)
        for name, value in graph.states.items():
            self.values[name] = np.zeros(value.spec.resolve({"B": num_blocks}))
        self.block_size = next(iter(graph.states.values())).spec.resolve({"B": num_blocks})[2]

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Logits [R, vocab_size] of one step."""
        values = dict(self.values)
        assert set(inputs) == set(self.graph.inputs)
        values.update({name: np.asarray(array, dtype=np.int64) for name, array in inputs.items()})
        for node in self.graph:
            arguments = {port: values[value.name] for port, value in node.inputs.items()}
            results = node.op.run_reference(EXACT, arguments, node.attrs)
            values.update({value.name: result for value, result in zip(node.outputs, results)})
        (logits,) = self.graph.outputs.values()
        return values[logits.name]


class ExecutorRunner:
    """The executor on one reference device; `composites` False hides the fused operations from it."""

    def __init__(
        self,
        graph: Graph,
        recipes: dict[str, WeightRecipe],
        data: Callable[[str], memoryview],
        num_blocks: int,
        composites: bool = True,
    ):
        catalogue = Catalogue()
        for op in CATALOGUE:
            if composites or not op.is_composite:
                catalogue.add(op)
        self.graph = graph
        self.num_blocks = num_blocks
        self.device = ReferenceDevice(catalogue=catalogue)
        sizes = {"B": num_blocks}
        self.block_size = next(iter(graph.states.values())).spec.resolve(sizes)[2]
        self.plan = make_plan(graph, {"host": self.device.manifest}, fallback="forbid", state_dims=sizes)

        def weight(name: str) -> tuple[TensorSpec, memoryview]:
            return recipes[name].spec, load_weight_bytes(recipes[name], data)

        self.executor = Executor(self.plan, {"host": self.device}, weight, sizes)

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Logits [R, vocab_size] of one step."""
        num_seqs, width = inputs["block_table"].shape
        dims = {
            "T": len(inputs["token_ids"]),
            "S": num_seqs,
            "Q": num_seqs + 1,
            "P": width,
            "R": len(inputs["logits_rows"]),
        }
        arrays = {name: np.asarray(array, dtype=np.int32) for name, array in inputs.items()}
        return self.executor.run(arrays, dims)["logits"]


def open_runner(
    model: Any, *, max_model_len: int = 128, block_size: int = 4, make: Callable[..., Runner] = HostRunner
) -> Any:
    """A runner for an open model file (kind, metadata, tensors, data)."""
    spec = describe_model(model.kind, model.metadata, model.tensors)
    graph = build_graph(
        spec,
        max_num_tokens=max_model_len,
        max_num_seqs=8,
        max_model_len=max_model_len,
        block_size=block_size,
        kv_format="f32",
        max_num_logits=max_model_len,
    )
    return make(graph, dict(weight_source(spec)), model.data, 2 * max_model_len // block_size)


def ragged_inputs(
    parts: Sequence[tuple[Sequence[int], int, Sequence[int]]], block_size: int, every_row: bool = True
) -> dict[str, np.ndarray]:
    """Inputs of a step; each part is (token ids of this step, tokens computed before, block ids of the sequence)."""
    token_ids, positions, slots, starts, lengths = [], [], [], [0], []
    for ids, num_computed, blocks in parts:
        for offset, token in enumerate(ids):
            position = num_computed + offset
            token_ids.append(token)
            positions.append(position)
            slots.append(blocks[position // block_size] * block_size + position % block_size)
        starts.append(len(token_ids))
        lengths.append(num_computed + len(ids))
    width = max(-(-length // block_size) for length in lengths)
    table = np.zeros((len(parts), width), dtype=np.int64)
    for row, ((_, _, blocks), length) in enumerate(zip(parts, lengths)):
        used = -(-length // block_size)
        table[row, :used] = list(blocks)[:used]
    rows = range(len(token_ids)) if every_row else [end - 1 for end in starts[1:]]
    return {
        "token_ids": np.array(token_ids),
        "positions": np.array(positions),
        "query_start_loc": np.array(starts),
        "seq_lens": np.array(lengths),
        "block_table": table,
        "slot_mapping": np.array(slots),
        "logits_rows": np.array(list(rows)),
    }


def shuffled_blocks(runner: Runner, seed: int) -> list[int]:
    """All block ids in a random order."""
    blocks = list(range(runner.num_blocks))
    random.Random(seed).shuffle(blocks)
    return blocks


def logits_in_chunks(runner: Runner, token_ids: Sequence[int], chunk: int, seed: int = 0) -> np.ndarray:
    """Logits of every token, computed `chunk` tokens a step."""
    blocks = shuffled_blocks(runner, seed)
    steps = [
        runner.run(ragged_inputs([(token_ids[i : i + chunk], i, blocks)], runner.block_size))
        for i in range(0, len(token_ids), chunk)
    ]
    return np.concatenate(steps)


def generate_greedily(
    runner: Runner, token_ids: Sequence[int], num_tokens: int, seed: int = 0
) -> tuple[list[int], np.ndarray]:
    """Output token ids, and logits [num_tokens, vocab_size] that they were chosen from."""
    blocks = shuffled_blocks(runner, seed)
    logits = [runner.run(ragged_inputs([(token_ids, 0, blocks)], runner.block_size, every_row=False))[0]]
    output = [int(np.argmax(logits[0]))]
    while len(output) < num_tokens:
        part = ([output[-1]], len(token_ids) + len(output) - 1, blocks)
        logits.append(runner.run(ragged_inputs([part], runner.block_size))[0])
        output.append(int(np.argmax(logits[-1])))
    return output, np.stack(logits)
