"""Opens native devices over a library that tests build, and runs single operations on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backend import DeviceInfo
from runtime.dtypes import FORMATS, Span, TensorSpec, encode
from runtime.executor import Executor, make_plan
from runtime.graph import Graph, GraphBuilder
from runtime.ops import CATALOGUE, Rounding
from runtime_cpu.device import NativeDevice
from runtime_cpu.native import Library


def open_device(library: Library, isa: str | None = None, threads: int = 2) -> NativeDevice:
    """A device with the given instruction set, or the fastest."""
    info = DeviceInfo(index=0, name="test", memory_bytes=1 << 30, score=1.0)
    return NativeDevice(library, info, isa=isa or library.usable_isas[-1], num_threads=threads)


def load(path: Path) -> Library:
    """The library at `path`."""
    return Library(path)


class OneOp:
    """A graph of one operation: arrays are step inputs, `weights` come as (format, float array), `kv` is a state."""

    def __init__(
        self,
        op_name: str,
        inputs: Mapping[str, np.ndarray],
        attrs: Mapping[str, Any] | None = None,
        weights: Mapping[str, tuple[str, np.ndarray]] | None = None,
        kv: tuple[str, np.ndarray] | None = None,
    ) -> None:
        self.op = CATALOGUE[f"{op_name}@1"]
        self.attrs = dict(attrs or {})
        self.arrays = dict(inputs)
        self.stored = {
            port: (TensorSpec(FORMATS[fmt], array.shape), encode(FORMATS[fmt], array))
            for port, (fmt, array) in (weights or {}).items()
        }
        self.kv = kv
        builder = GraphBuilder(op_name, {"T": Span(1, 1024)})
        values: dict[str, Any] = {}
        for port, array in inputs.items():
            values[port] = builder.input(port, "i32" if array.dtype.kind in "iu" else "f32", array.shape)
        for port, (spec, _) in self.stored.items():
            values[port] = builder.weight(port, spec)
        if kv is not None:
            values["kv"] = builder.state("kv", TensorSpec(FORMATS[kv[0]], kv[1].shape, "kv"))
        made = builder.op(op_name, name="y", attrs=self.attrs, **values)
        self.outputs = made if isinstance(made, tuple) else (made,)
        for i, value in enumerate(self.outputs):
            builder.output(f"y{i}", value)
        self.graph: Graph = builder.build()

    def run(self, device: NativeDevice) -> list[np.ndarray]:
        """The outputs as `device` computes them, all of it natively."""
        plan = make_plan(self.graph, {"cpu": device.manifest}, fallback="forbid")
        executor = Executor(plan, {"cpu": device}, lambda name: self.stored[name])
        if self.kv is not None:
            spec = TensorSpec(FORMATS[self.kv[0]], self.kv[1].shape, "kv")
            (buffers,) = executor._resident.values()
            device.upload(buffers["kv"], memoryview(encode(FORMATS[self.kv[0]], self.kv[1])), spec)
        made = executor.run(self.arrays, {"T": 1})
        executor.close()
        return [made[f"y{i}"] for i in range(len(self.outputs))]

    def reference(self, rounding: Rounding | None = None) -> list[np.ndarray]:
        """The outputs of the float64 reference."""
        values: dict[str, Any] = {
            port: a.astype(np.int64 if a.dtype.kind in "iu" else np.float64) for port, a in self.arrays.items()
        }
        for port, (spec, data) in self.stored.items():
            values[port] = spec.format.decode(data, spec.shape).astype(np.float64)
        if self.kv is not None:
            fmt = FORMATS[self.kv[0]]
            values["kv"] = fmt.decode(encode(fmt, self.kv[1]), self.kv[1].shape).astype(np.float64)
        return list(self.op.run_reference(rounding or Rounding({}), values, self.attrs))


def assert_judged(op: OneOp, device: NativeDevice, runs: int = 24) -> None:
    """Floats deviate no more than the roundings that the rule declares explain; integers and what is exact agree."""
    rule = make_plan(op.graph, {"cpu": device.manifest}, fallback="forbid").placements.by_node[0].rule
    assert rule is not None
    points = rule.numerics.points()
    if op.kv is not None:
        points["kv"] = "i8/32" if op.kv[0] == "q8_0" else op.kv[0]
    exact = op.reference()
    rng = np.random.default_rng(3)
    noisy = [op.reference(Rounding(points, "random", rng)) for _ in range(runs)]
    for i, (got, wanted) in enumerate(zip(op.run(device), exact, strict=True)):
        if got.dtype.kind in "iu":
            assert np.array_equal(got, wanted)
            continue
        if op.op.check.metric == "ulp" and op.kv is None:
            assert (np.abs(got - wanted) <= op.op.check.max_ulp * np.spacing(np.abs(wanted).astype(np.float32))).all()
            continue
        spread = np.sqrt(np.mean([(n[i] - wanted) ** 2 for n in noisy], axis=0))
        floor = np.sqrt(np.mean(spread**2)) * 0.05 + 1e-30  # elements whose few samples happen to agree
        z = (got - wanted) / np.maximum(spread, floor)
        assert np.sqrt(np.mean(z**2)) <= 1.6, f"{op.op.key} {op.attrs}: rms z {np.sqrt(np.mean(z**2)):.2f}"


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Root mean square of the difference, over that of what is wanted."""
    return float(np.sqrt(np.mean((got - wanted) ** 2) / max(np.mean(np.asarray(wanted, float) ** 2), 1e-300)))
