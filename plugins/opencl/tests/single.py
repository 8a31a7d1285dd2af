"""Runs one operation on a device through the executor, and the catalogue's float64 reference on the same contents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.backend import QuantizedTensor, TensorSpec, from_bytes
from runtime.dtypes import FORMATS, encode
from runtime.executor import Executor, make_plan
from runtime.graph import GraphBuilder
from runtime.ops import CATALOGUE, EXACT, Rounding

Array = np.ndarray
WEIGHT_PORTS = {"weight"}
SCALES_AT = {"q4_k": (0, 2), "q6_k": (208,)}
"""Offsets of the float16 scales in a block; every other byte may be anything."""


class Case:
    """An operation with its inputs: port -> array, or (array, format) for another format than f32 or i32.

    Everything but weights (and `kv`, a state) is a step input. K-quants have no encoder here: they get random blocks.
    """

    def __init__(self, op: str, attrs: Mapping[str, Any] | None = None, **inputs: Any) -> None:
        self.op = CATALOGUE[f"{op}@1"]
        self.attrs = dict(attrs or {})
        self.stored: dict[str, tuple[TensorSpec, bytes]] = {}
        self.values: dict[str, Array] = {}
        for port, given in inputs.items():
            array, fmt = given if isinstance(given, tuple) else (given, "i32" if given.dtype.kind == "i" else "f32")
            spec = TensorSpec(FORMATS[fmt], array.shape, "kv" if port == "kv" else "plain")
            data = _stored(spec, array)
            decoded = from_bytes(TensorSpec(spec.format, spec.shape), data)
            self.values[port] = decoded.decode() if isinstance(decoded, QuantizedTensor) else decoded
            self.stored[port] = (spec, data)

    def expected(self, rounding: Rounding = EXACT) -> list[Array]:
        """The reference's outputs in float64."""
        widened = {p: v.astype(np.int64 if v.dtype.kind == "i" else np.float64) for p, v in self.values.items()}
        return list(self.op.run_reference(rounding, widened, self.attrs))

    def run(self, device: Any) -> list[Array]:
        """The device's outputs; the placement may use nothing else."""
        builder = GraphBuilder("case", {})
        values = {}
        for port, (spec, _) in self.stored.items():
            if port == "kv":
                values[port] = builder.state("kv", TensorSpec(spec.format, spec.shape, "kv"))
            elif port in WEIGHT_PORTS:
                values[port] = builder.weight(port, spec)
            else:
                values[port] = builder.input(port, spec.format.name, spec.shape)
        made = builder.op(self.op.key, attrs=self.attrs, **values)
        made = made if isinstance(made, tuple) else (made,)
        for i, value in enumerate(made):
            builder.output(f"y{i}", value)
        manifest = device.manifest
        plan = make_plan(builder.build(), {manifest.backend: manifest}, fallback="forbid")
        executor = Executor(plan, {manifest.backend: device}, self.stored.__getitem__)
        try:
            if "kv" in self.stored:
                spec, data = self.stored["kv"]
                buffer = executor._resident[manifest.backend]["kv"]
                device.upload(buffer, memoryview(data), spec).wait()
            steps = {p: self.values[p] for p in self.stored if p not in WEIGHT_PORTS and p != "kv"}
            results = executor.run(steps, {})
        finally:
            executor.close()
        return [results[f"y{i}"] for i in range(len(made))]


def _stored(spec: TensorSpec, array: Array) -> bytes:
    fmt = spec.format
    if fmt.name not in SCALES_AT:
        return bytes(encode(fmt, array))
    rng = np.random.default_rng(array.size)
    blocks = rng.integers(0, 256, (array.size // fmt.group_size, fmt.block_bytes), np.uint8)
    for offset in SCALES_AT[fmt.name]:
        scales = rng.uniform(-0.01, 0.01, len(blocks)).astype(np.float16)
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.tobytes()


def assert_close(got: Array, expected: Array, *, ulps: float = 16.0, scale: float | Array | None = None) -> None:
    """Within `ulps` float32 units of `scale` (default: of each row's largest value); NaN and infinity where expected."""
    assert got.shape == expected.shape
    expected = np.asarray(expected, np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    with np.errstate(over="ignore"):
        infinite = np.isinf(expected.astype(np.float32))
    np.testing.assert_array_equal(got[infinite], expected.astype(np.float32)[infinite])
    finite = np.isfinite(expected) & ~infinite
    if scale is None:
        scale = np.abs(np.where(finite, expected, 0)).max(-1, keepdims=True)
    error = np.abs(np.where(finite, got - np.where(finite, expected, 0), 0))
    assert (error <= ulps * 2.0**-24 * np.broadcast_to(scale, error.shape) + 1e-37).all(), (
        f"largest error {error.max()} where {float(np.max(ulps * 2.0**-24 * np.asarray(scale)))} is allowed"
    )


def random(seed: int, *shape: int, scale: float = 1.0) -> Array:
    """Normal float32 numbers."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
