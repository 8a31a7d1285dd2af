"""Runs a region node by node on arrays: the executable of devices that compute one operation at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.backend.contract import Buffer
from runtime.backend.host import ArrayBuffer, FinishedEvent
from runtime.dtypes import TensorSpec
from runtime.errors import ExecutionFailed, RuntimeFault
from runtime.graph import Node, Region

RunNode = Callable[[Node, dict[str, Any], Mapping[str, int]], Sequence[Any]]


class InterpretedRegion:
    """A region whose nodes are run in order by `run_node(node, arrays by port, dims) -> arrays of the outputs`.

    An intermediate is let go after its last use. An error is carried by the event; its message names the node.
    """

    def __init__(self, region: Region, resident: Mapping[str, Buffer], run_node: RunNode, fingerprint: str) -> None:
        self._region = region
        self._resident = dict(resident)
        self._run_node = run_node
        self._fingerprint = fingerprint
        self._dead_after = _last_uses(region)

    @property
    def fingerprint(self) -> str:
        """Identifies kernels and options in reports."""
        return self._fingerprint

    def submit(self, bindings: Mapping[str, Buffer], dims: Mapping[str, int]) -> FinishedEvent:
        """Run the region now; the event is done and carries the error, if any."""
        try:
            self._run(bindings, dims)
        except RuntimeFault as error:
            return FinishedEvent(error)
        return FinishedEvent()

    def close(self) -> None:
        """Forget the resident buffers; they belong to the caller."""
        self._resident = {}

    def _run(self, bindings: Mapping[str, Buffer], dims: Mapping[str, int]) -> None:
        region = self._region
        arrays: dict[str, Any] = {}
        for value in region.resident:
            arrays[value.name] = _content(self._resident[value.name], value.name)
        for value in region.inputs:
            arrays[value.name] = _content(bindings[value.name], value.name)
        for alias, state in region.aliases.items():
            arrays[alias.name] = arrays[state.name]
        for node, dead in zip(region.nodes, self._dead_after):
            inputs = {port: arrays[value.name] for port, value in node.inputs.items()}
            try:
                made = self._run_node(node, inputs, dims)
            except RuntimeFault:
                raise
            except Exception as error:  # a kernel is foreign code: whatever it raises becomes the event's error
                raise ExecutionFailed(
                    f"node {node.name} ({node.op.key}) failed: {type(error).__name__}: {error}"
                ) from error
            for value, array in zip(node.outputs, made):
                arrays[value.name] = array
                if value in region.aliases:  # a kernel that does not work in place returns a new state
                    self._replace_state(region.aliases[value].name, array)
            for name in dead:
                del arrays[name]
        for value in region.outputs:
            buffer = bindings[value.name]
            assert isinstance(buffer, ArrayBuffer)
            buffer.value = arrays[value.name]

    def _replace_state(self, name: str, array: Any) -> None:
        buffer = self._resident[name]
        assert isinstance(buffer, ArrayBuffer)
        buffer.value = array


def resolve_spec(spec: TensorSpec, dims: Mapping[str, int]) -> TensorSpec:
    """`spec` with symbolic dimensions replaced by their values."""
    return TensorSpec(spec.format, spec.resolve(dims), spec.layout)


def _content(buffer: Buffer, name: str) -> Any:
    value = buffer.value if isinstance(buffer, ArrayBuffer) else buffer
    if value is None:
        raise ExecutionFailed(f"the buffer bound to '{name}' is empty or closed")
    return value


def _last_uses(region: Region) -> list[list[str]]:
    """Per node, the names of values that nobody needs once it has run."""
    keep = {v.name for v in (*region.outputs, *region.resident)}
    dead: list[list[str]] = [[] for _ in region.nodes]
    seen: set[str] = set()
    for index in range(len(region.nodes) - 1, -1, -1):
        node = region.nodes[index]
        for value in dict.fromkeys((*node.inputs.values(), *node.outputs)):
            if value.name not in seen and value.name not in keep:
                dead[index].append(value.name)
            seen.add(value.name)
    return dead
