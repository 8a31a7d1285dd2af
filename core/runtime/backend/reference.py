"""The reference device: every operation of the catalogue by its float64 reference, on the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.backend.contract import Buffer, DeviceInfo
from runtime.backend.host import (
    HostDevice,
    QuantizedTensor,
    as_format,
    host_memory,
)
from runtime.backend.interpret import InterpretedRegion, resolve_spec
from runtime.backend.manifest import KVLayout, Manifest, Numerics, Rule
from runtime.backend.weights import DecodeBudget, HostWeight
from runtime.dtypes import FORMATS, TensorSpec, encode
from runtime.errors import InvalidArgument
from runtime.graph import Node, Region
from runtime.ops import CATALOGUE, Catalogue, Rounding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NUMERICS = Numerics(activation="f32", accumulate="f64", probability="f32", output="f32", order="fixed")
KV_FORMATS = ("f32", "f16", "bf16", "f8_e4m3", "f8_e5m2", "q8_0")


def reference_manifest(name: str = "host", catalogue: Catalogue = CATALOGUE) -> Manifest:
    """What the reference device can do: every operation in every format; composites are expanded."""
    rules = tuple(
        Rule(op.key, numerics=NUMERICS, flags=frozenset({"deterministic"})) for op in catalogue if not op.is_composite
    )
    return Manifest(name, rules=rules, kv_layouts=(KVLayout(formats=KV_FORMATS),), memory_pools=("host",))


class ReferenceDevice(HostDevice):
    """Runs every operation by reference: activations are rounded to float32, sums are float64.

    Weights stay as they are stored (mapped file pages are used in place). They are decoded when first used and kept
    as float32 within `decoded_bytes` (None: a third of the memory that is available now); beyond it, they are decoded
    in chunks of rows at every use.
    """

    def __init__(
        self,
        info: DeviceInfo | None = None,
        *,
        decoded_bytes: int | None = None,
        name: str = "host",
        catalogue: Catalogue = CATALOGUE,
    ) -> None:
        available, total = host_memory()
        super().__init__(info or DeviceInfo(index=0, name="reference", memory_bytes=total, score=0.0))
        self._manifest = reference_manifest(name, catalogue)
        self._budget = DecodeBudget(available // 3 if decoded_bytes is None else decoded_bytes)

    @property
    def manifest(self) -> Manifest:
        """See `reference_manifest`."""
        return self._manifest

    def adopt_host(self, data: memoryview, spec: TensorSpec) -> HostWeight:
        """Use the bytes in place."""
        import numpy as np

        raw = np.frombuffer(data, dtype=np.uint8)
        expected = spec.nbytes()
        if raw.size != expected:
            raise InvalidArgument(f"a weight {spec} takes {expected} bytes, {raw.size} were given")
        return HostWeight(spec, raw, self._budget)

    def load_weight(self, spec: TensorSpec, data: memoryview, use: Mapping[str, Any]) -> HostWeight:
        """A copy of the bytes, for memory that the caller will not keep."""
        copied = memoryview(bytes(data))
        self._counters["bytes_uploaded"] += copied.nbytes
        return self.adopt_host(copied, spec)

    def compile(self, region: Region, resident: Mapping[str, Buffer], hints: Mapping[str, Any]) -> InterpretedRegion:
        """An executable that runs the region node by node."""
        return InterpretedRegion(region, resident, self._run_node, "reference float64")

    def _run_node(self, node: Node, inputs: dict[str, Any], dims: Mapping[str, int]) -> Sequence[Any]:
        import numpy as np

        started = time.perf_counter_ns()
        run = _BY_ROWS.get(node.op.key, _run_whole)
        with np.errstate(all="ignore"):  # infinities and NaN are results here, not faults
            widened = {p: v if node.inputs[p].spec.layout == "kv" else _widened(v) for p, v in inputs.items()}
            made = run(node, _rounding(node), widened)
            results = []
            for value, array in zip(node.outputs, made, strict=True):
                spec = resolve_spec(value.spec, dims)
                results.append(array if spec.layout == "kv" else as_format(spec.format, array, spec.resolve({})))
        self._counters["kernels_run"] += 1
        self._counters["host_compute_ns"] += time.perf_counter_ns() - started
        return results


class _HostRounding(Rounding):
    """Also rounds a KV cache to a block format: encoded and decoded again, along the head dimension."""

    def __call__(self, point: str, x: NDArray[Any]) -> NDArray[Any]:
        fmt = self.formats.get(point, "f64")
        if fmt not in FORMATS or not FORMATS[fmt].is_quantized:
            return super().__call__(point, x)
        import numpy as np

        return FORMATS[fmt].decode(encode(FORMATS[fmt], x.astype(np.float32)), x.shape)


def _rounding(node: Node) -> Rounding:
    points = NUMERICS.points()
    for value in node.outputs:
        if value.spec.format.kind == "float" and value.spec.layout == "plain":
            points["output"] = value.spec.format.name
            break
    for value in (*node.inputs.values(), *node.outputs):
        if value.spec.layout == "kv":
            points["kv"] = value.spec.format.name
            break
    return _HostRounding(points, mode="nearest")


def _widened(value: Any) -> Any:
    """Arrays as references take them: float64 or int64. Weights wait: they may be too large to be decoded whole."""
    import numpy as np

    if isinstance(value, QuantizedTensor):
        return value.decode().astype(np.float64)
    if isinstance(value, HostWeight):
        return value
    return value.astype(np.float64 if value.dtype.kind == "f" else np.int64)


def _run_whole(node: Node, rounding: Rounding, inputs: dict[str, Any]) -> Sequence[Any]:
    whole = {port: _widened(v.array()) if isinstance(v, HostWeight) else v for port, v in inputs.items()}
    return node.op.run_reference(rounding, whole, node.attrs)


def _run_embed(node: Node, rounding: Rounding, inputs: dict[str, Any]) -> Sequence[Any]:
    """Decodes only the rows that are asked for."""
    import numpy as np

    weight = inputs["weight"]
    if not isinstance(weight, HostWeight):
        return _run_whole(node, rounding, inputs)
    _check_ids(inputs["token_ids"], weight.shape[0], "token", node)
    rows, local_ids = np.unique(inputs["token_ids"], return_inverse=True)
    small = inputs | {"token_ids": local_ids.reshape(-1), "weight": weight.take(rows).astype(np.float64)}
    return node.op.run_reference(rounding, small, node.attrs)


def _run_linear(node: Node, rounding: Rounding, inputs: dict[str, Any]) -> Sequence[Any]:
    """Rows of the weight are independent: some at a time."""
    import numpy as np

    weight = inputs["weight"]
    if not isinstance(weight, HostWeight):
        return _run_whole(node, rounding, inputs)
    inputs = _decoded_except(inputs, "weight")
    num_tokens, num_rows = len(inputs["x"]), weight.shape[0]
    y = np.empty((num_tokens, num_rows))
    step = weight.chunk_rows(num_tokens)
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        part = inputs | {"weight": weight.rows(start, stop).astype(np.float64)}
        if "bias" in inputs:
            part["bias"] = inputs["bias"][start:stop]
        y[:, start:stop] = node.op.run_reference(rounding, part, node.attrs)[0]
    return (y,)


def _run_moe_linear(node: Node, rounding: Rounding, inputs: dict[str, Any]) -> Sequence[Any]:
    """Decodes only the experts that are used; rows of an expert are independent: some at a time."""
    import numpy as np

    weight = inputs["weight"]
    if not isinstance(weight, HostWeight):
        return _run_whole(node, rounding, inputs)
    inputs = _decoded_except(inputs, "weight")
    num_experts, num_rows, k = weight.shape
    ids = inputs["expert_ids"]
    _check_ids(ids, num_experts, "expert", node)
    used, local_ids = np.unique(ids, return_inverse=True)
    num_tokens = len(ids)
    runs = 1 if "expert_weights" in inputs else ids.shape[1]
    y = np.empty((num_tokens, runs, num_rows))
    step = max(1, weight.chunk_rows(num_tokens) // max(1, len(used)))
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        slab = np.empty((len(used), stop - start, k))
        for i, expert in enumerate(used):
            slab[i] = weight.rows(int(expert) * num_rows + start, int(expert) * num_rows + stop)
        part = inputs | {"weight": slab, "expert_ids": local_ids.reshape(ids.shape)}
        if "bias" in inputs:
            part["bias"] = inputs["bias"][used, start:stop]
        made = node.op.run_reference(rounding, part, node.attrs)[0]
        y[:, :, start:stop] = made.reshape(num_tokens, runs, stop - start)
    return (y.reshape(num_tokens, runs * num_rows),)


def _decoded_except(inputs: dict[str, Any], port: str) -> dict[str, Any]:
    return {
        name: _widened(v.array()) if isinstance(v, HostWeight) and name != port else v for name, v in inputs.items()
    }


def _check_ids(ids: NDArray[np.int64], count: int, what: str, node: Node) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        bad = int(ids[(ids < 0) | (ids >= count)].reshape(-1)[0])
        raise InvalidArgument(f"node {node.name}: {what} id {bad} is outside 0..{count - 1}")


_BY_ROWS: dict[str, Callable[[Node, Rounding, dict[str, Any]], Sequence[Any]]] = {
    "embed@1": _run_embed,
    "linear@1": _run_linear,
    "moe_linear@1": _run_moe_linear,
}
"""Operations whose weights are too large to be decoded whole at every use."""
