"""Copies KV blocks on the devices, and moves them to the host's memory and back, by graphs of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.dtypes import Span
from runtime.errors import FallbackForbidden, Unsupported
from runtime.executor import Executor, Plan
from runtime.graph import Graph, GraphBuilder

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCKS_PER_RUN = 8
"""Blocks that one run moves: the buffers for their canonical form stay small."""
Planner = Callable[[Graph, Sequence[tuple[str, str]]], Plan]
"""(graph, placements by node name) -> plan."""


class BlockMover:
    """Works on the KV caches of `executor`. Each kind of graph is planned and compiled on first use.

    planner     plans a graph with the placements that it is given
    devices     the open devices, by name
    state_dims  as for the executor
    """

    def __init__(
        self, executor: Executor, planner: Planner, devices: Mapping[str, Any], state_dims: Mapping[str, int]
    ) -> None:
        self._main = executor
        self._planner = planner
        self._devices = devices
        self._state_dims = state_dims
        self._executors: dict[str, Executor | None] = {}

    @property
    def can_copy(self) -> bool:
        """Whether every cache's own device can copy blocks."""
        return self._executor("kv_copy_blocks") is not None

    @property
    def can_move(self) -> bool:
        """Whether blocks can go to the host's memory and come back."""
        return self._executor("kv_export") is not None and self._executor("kv_import") is not None

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of all layers in the canonical form, f32."""
        total = 0
        for state in self._main.plan.graph.states.values():
            two, _, *block = state.spec.resolve(self._state_dims)
            total += 4 * two * block[0] * block[1] * block[2]
        return total

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Block contents from the first to the second of each pair."""
        for part in _parts(pairs):
            sources, targets = zip(*part)
            self._run("kv_copy_blocks", {"source_blocks": sources, "target_blocks": targets}, len(part))

    def export(self, block_ids: Sequence[int]) -> list[dict[str, NDArray[Any]]]:
        """The contents of blocks, exactly, to be given to `restore`."""
        return [self._run("kv_export", {"block_ids": part}, len(part)) for part in _parts(block_ids)]

    def restore(self, block_ids: Sequence[int], contents: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        """Write what `export` returned into as many blocks, which may be others."""
        for part, data in zip(_parts(block_ids), contents, strict=True):
            self._run("kv_import", {"block_ids": part, **data}, len(part))

    def close(self) -> None:
        """Free what was compiled."""
        for executor in self._executors.values():
            if executor is not None:
                executor.close()
        self._executors.clear()

    def _run(self, op: str, inputs: Mapping[str, Any], count: int) -> dict[str, NDArray[Any]]:
        import numpy as np

        executor = self._executor(op)
        assert executor is not None, f"{op} was not asked for"
        arrays = {n: v if isinstance(v, np.ndarray) else np.array(v, np.int32) for n, v in inputs.items()}
        return executor.run(arrays, {"N": count})

    def _executor(self, op: str) -> Executor | None:
        if op not in self._executors:
            self._executors[op] = self._make(op)
        return self._executors[op]

    def _make(self, op: str) -> Executor | None:
        """None where a cache's own device lacks the operation: moving whole caches to another one helps nobody."""
        graph, homes = self._graph(op)
        try:
            plan = self._planner(graph, list(homes.items()))
        except (FallbackForbidden, Unsupported):
            return None
        if any(p.device != homes.get(p.node.name) for p in plan.placements.by_node):
            return None
        return Executor(plan, self._devices, state_dims=self._state_dims, shared=self._main)

    def _graph(self, op: str) -> tuple[Graph, dict[str, str]]:
        """The graph that runs `op` on every cache, and where each of its nodes belongs."""
        main = self._main.plan.graph
        b = GraphBuilder(op, {"B": main.dims["B"], "N": Span(1, BLOCKS_PER_RUN)})
        names = ("source_blocks", "target_blocks") if op == "kv_copy_blocks" else ("block_ids",)
        ids = {name: b.input(name, "i32", ("N",)) for name in names}
        homes = {}
        for name, state in main.states.items():
            two, _, *block = state.spec.shape
            inputs: dict[str, Any] = dict(ids)
            if op == "kv_import":
                inputs["data"] = b.input(f"{name}.data", "f32", (two, "N", *block))
            made = b.op(op, name=f"{name}.{op}", kv=b.state(name, state.spec), **inputs)
            if op == "kv_export":
                b.output(f"{name}.data", made)
            homes[f"{name}.{op}"] = self._main.state(name)[0]
        return b.build(), homes


def _parts(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[i : i + BLOCKS_PER_RUN] for i in range(0, len(items), BLOCKS_PER_RUN)]
