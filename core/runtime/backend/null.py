"""A device that computes nothing: for tests of everything around the computation, and for measuring its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.backend.contract import Buffer, DeviceInfo
from runtime.backend.host import VIEWED, ArrayBuffer, HostDevice, QuantizedTensor, kv_dtype
from runtime.backend.interpret import InterpretedRegion, resolve_spec
from runtime.backend.manifest import KVLayout, Manifest, Rule
from runtime.dtypes import TensorSpec
from runtime.graph import Node, Region
from runtime.ops import CATALOGUE, Catalogue


class NullDevice(HostDevice):
    """Claims every operation, composites included, and returns zeros; it counts what it was asked to run.

    KV caches and weights take no memory.
    """

    def __init__(self, name: str = "null", catalogue: Catalogue = CATALOGUE) -> None:
        super().__init__(DeviceInfo(index=0, name=name, memory_bytes=1 << 40, score=0.0))
        layouts = (KVLayout(formats=("f16", "f32", "bf16", "q8_0")),)
        self._manifest = Manifest(name, rules=tuple(Rule(op.key) for op in catalogue), kv_layouts=layouts)

    @property
    def manifest(self) -> Manifest:
        """A rule without conditions for every operation."""
        return self._manifest

    def allocate(self, spec: TensorSpec) -> ArrayBuffer:
        """A place for a tensor; a KV cache is one zero, seen everywhere."""
        import numpy as np

        if spec.layout != "kv":
            return super().allocate(spec)
        return ArrayBuffer(spec.nbytes(), np.broadcast_to(np.zeros((), kv_dtype(spec.format)), spec.resolve({})))

    def adopt_host(self, data: memoryview, spec: TensorSpec) -> ArrayBuffer:
        """Takes everything and looks at nothing."""
        return ArrayBuffer(spec.nbytes(), data)

    def load_weight(self, spec: TensorSpec, data: memoryview, use: Mapping[str, Any]) -> ArrayBuffer:
        """As `adopt_host`."""
        return self.adopt_host(data, spec)

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> InterpretedRegion:
        """An executable that makes zeros."""
        return InterpretedRegion(region, resident, self._run_node, "null")

    def communicator(self, group: Sequence[str], rank: int) -> None:
        """None: there is nothing to exchange."""

    def memory(self) -> Mapping[str, tuple[int, int]]:
        """As much as it says it has, all of it free."""
        return {"null": (self.info.memory_bytes, self.info.memory_bytes)}

    def _run_node(self, node: Node, inputs: dict[str, Any], dims: Mapping[str, int]) -> Sequence[Any]:
        import numpy as np

        self._counters["kernels_run"] += 1
        made: list[Any] = []
        port_of = {value: port for port, value in node.inputs.items()}
        for value in node.outputs:
            spec = resolve_spec(value.spec, dims)
            shape = spec.resolve({})
            if value in node.overwrites:
                made.append(inputs[port_of[node.overwrites[value]]])
            elif spec.format.is_quantized:
                rows = np.zeros((*shape[:-1], spec.format.nbytes(shape[-1:])), np.uint8)
                made.append(QuantizedTensor(spec.format, shape, rows))
            else:
                made.append(np.zeros(shape, VIEWED.get(spec.format.name, "float32")))
        return made
