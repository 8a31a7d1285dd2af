"""Products of one shape by themselves, and the device's time in a decoding step by kernel: what one tunes by."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpu_peer import Ceilings
from random_blocks import FORMATS as GGUF_FORMATS
from random_blocks import Pools

ROWS = (1, 2, 4, 16, 64, 256, 4096)
TOGETHER_BYTES = 1 << 30
"""Of different weights that are read in turn: more than caches hold."""
OUTPUT_BYTES = 2 << 30
MAX_TOGETHER = 64
POOL_ELEMENTS = 1 << 20
SUBMISSIONS = 4
TIMES = 5


@dataclass(frozen=True)
class Product:
    """y [rows, N] = x [rows, K] W^T with W in `weights`; shares of the copy rate by W's bytes, and of the bf16 rate."""

    weights: str
    num_rows: int
    n: int
    k: int
    microseconds: float
    bytes_per_s: float
    copy_share: float
    operations_per_s: float
    matmul_share: float
    num_kernels: int


def measure_products(
    device: Any,
    formats: tuple[str, ...],
    shapes: tuple[tuple[int, int], ...],
    rows: tuple[int, ...],
    ceilings: Ceilings,
    together_bytes: int = TOGETHER_BYTES,
    times: int = TIMES,
) -> Iterator[Product]:
    """Through the contract of the backend, as a step runs them: captured where the device captures."""
    for n, k in shapes:
        for fmt in formats:
            yield from _measure_shape(device, fmt, n, k, rows, ceilings, together_bytes, times)


def _measure_shape(
    device: Any,
    fmt: str,
    n: int,
    k: int,
    rows: tuple[int, ...],
    ceilings: Ceilings,
    together_bytes: int,
    times: int,
) -> Iterator[Product]:
    from runtime.dtypes import FORMATS, Span, TensorSpec
    from runtime.graph import GraphBuilder, make_region

    spec = TensorSpec(FORMATS[fmt], (n, k))
    count = max(1, min(MAX_TOGETHER, together_bytes // spec.nbytes(), OUTPUT_BYTES // (4 * n * max(rows))))
    builder = GraphBuilder("products", {"T": Span(1, max(rows))})
    x = builder.input("x", "f32", ("T", k))
    weights = [builder.weight(f"w{i}", spec) for i in range(count)]
    outputs = [builder.op("linear", x=x, weight=w) for w in weights]
    for i, y in enumerate(outputs):
        builder.output(f"y{i}", y)
    graph = builder.build()
    region = make_region("products", list(graph.nodes), graph.dims, list(outputs))
    stored = random_bytes(fmt, n, k)
    buffers = {f"w{i}": device.load_weight(spec, memoryview(stored), {"name": f"w{i}"}) for i in range(count)}
    executable = device.compile(region, buffers, {})
    bound = {v.name: device.allocate(TensorSpec(FORMATS["f32"], (max(rows), v.spec.shape[1]))) for v in (x, *outputs)}
    values = random_bytes("f32", max(rows), k)
    device.upload(bound["x"], memoryview(values), TensorSpec(FORMATS["f32"], (max(rows), k))).wait()
    try:
        for num_rows in rows:
            for _ in range(3):  # builds kernels, captures, replays
                executable.submit(bound, {"T": num_rows}).wait()
            before = device.counters()["kernels_run"]
            seconds = min(_timed(executable, bound, num_rows) for _ in range(times)) / SUBMISSIONS / count
            launches = (device.counters()["kernels_run"] - before) / (times * SUBMISSIONS * count)
            read, operations = spec.nbytes() / seconds, 2 * num_rows * n * k / seconds
            yield Product(
                *(fmt, num_rows, n, k, 1e6 * seconds, read, read / ceilings.copy_bytes_per_s, operations),
                *(operations / ceilings.matmul_operations_per_s, round(launches)),
            )
    finally:
        executable.close()
        for buffer in (*buffers.values(), *bound.values()):
            buffer.close()


def _timed(executable: Any, bound: dict[str, Any], num_rows: int) -> float:
    started = time.perf_counter()
    events = [executable.submit(bound, {"T": num_rows}) for _ in range(SUBMISSIONS)]
    for event in events:
        event.wait()
    return time.perf_counter() - started


def random_bytes(fmt: str, n: int, k: int) -> bytes:
    """A matrix [n, k] in `fmt`."""
    import numpy as np

    from runtime.dtypes import FORMATS, TensorSpec, encode

    if fmt in GGUF_FORMATS:
        file = io.BytesIO()
        Pools(7, 1 << 22).tensor(GGUF_FORMATS[fmt], (n, k), k**-0.5).tofile(file)
        return file.getvalue()
    values = np.random.default_rng(7).standard_normal(min(n * k, POOL_ELEMENTS)).astype(np.float32)
    pool, nbytes = bytes(encode(FORMATS[fmt], values * np.float32(k**-0.5))), TensorSpec(FORMATS[fmt], (n, k)).nbytes()
    return (pool * -(-nbytes // len(pool)))[:nbytes]


def products_table(products: list[Product]) -> str:
    """Markdown."""
    lines = ["| weights | N x K | rows | us | launches | GB/s | of copy | TFLOP/s | of bf16 |", "|" + "---|" * 9]
    for p in products:
        lines.append(
            f"| {p.weights} | {p.n} x {p.k} | {p.num_rows} | {p.microseconds:.1f} | {p.num_kernels} | "
            f"{p.bytes_per_s / 1e9:.0f} | {100 * p.copy_share:.0f} % | {p.operations_per_s / 1e12:.1f} | "
            f"{100 * p.matmul_share:.0f} % |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class KernelTime:
    """A kernel's share of the device's time in decoding: microseconds and launches per step."""

    name: str
    microseconds: float
    launches: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Of decoding steps: wall and device microseconds of one, and its kernels, longest first."""

    model: str
    weights: str
    batch: int
    step_us: float
    device_us: float
    kernels: tuple[KernelTime, ...]


def profile_decoding(loaded: Any, model: str, weights: str, batch: int, depth: int, num_steps: int = 8) -> Profile:
    """The engine's own steps, replayed, under torch's profiler; raises what the profiler raises."""
    from torch.profiler import ProfilerActivity, profile

    from runtime.engine.bench import BenchPlan, BenchSequences

    sequences = BenchSequences(loaded, BenchPlan((), 2 * num_steps, (depth,), (batch,), 1))
    try:
        sequences.fill(batch, depth, None)
        sequences.decode(num_steps, depth, batch)
        step_us = 1e6 * sequences.decode(num_steps, depth, batch) / num_steps
        activities = [a for a in (ProfilerActivity.CUDA, ProfilerActivity.XPU) if a in _supported()]
        with profile(activities=activities or [ProfilerActivity.CPU], acc_events=True) as recorded:
            sequences.decode(num_steps, depth, batch)
    finally:
        sequences.close()
    of_device = "self_device_time_total" if activities else "self_cpu_time_total"
    rows = [(e.key, getattr(e, of_device) / num_steps, e.count / num_steps) for e in recorded.key_averages()]
    rows = sorted((r for r in rows if r[1] > 0), key=lambda r: -r[1])
    total = sum(r[1] for r in rows) or 1.0
    return Profile(model, weights, batch, step_us, total, tuple(KernelTime(*r, r[1] / total) for r in rows))


def _supported() -> set[Any]:
    from torch.profiler import supported_activities

    return set(supported_activities())


def profile_table(made: Profile, most: int = 20) -> str:
    """Markdown."""
    head = f"{made.model} {made.weights}, {made.batch} sequences: a step takes {made.step_us:.0f} us, "
    lines = [head + f"{made.device_us:.0f} us of them in kernels", ""]
    lines += ["| kernel | us per step | launches | share |", "|---|---|---|---|"]
    for k in made.kernels[:most]:
        lines.append(f"| {k.name[:80]} | {k.microseconds:.1f} | {k.launches:.1f} | {100 * k.share:.1f} % |")
    return "\n".join(lines)
