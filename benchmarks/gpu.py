"""Decoding and prefill on a GPU, beside transformers and beside the ceilings of the same device, all in one run.

Ceilings are the rate of a copy and of a product of bf16 matrices. The peer is transformers with a static cache and
torch.compile, in bf16, with random weights of the same shape. Every figure is a median with its spread; what matters
most is measured first. gpu.json and gpu.md in the work folder hold what has been measured, after every figure: a run
may be ended at any time, and `--minutes` ends it by itself. Kernels are built before, by processes of their own side by
side. A dry run measures tiny shapes on whatever backend is named, without the compiler.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fp8_model import write_fp8_model
from gpu_peer import Ceilings, hf_class, hf_config, measure_ceilings, measure_transformers
from gpu_products import (
    ROWS,
    Product,
    Profile,
    measure_products,
    products_table,
    profile_decoding,
    profile_table,
)
from models import SHAPES, Shape, tensor_shapes, write_model

_LLAMA3 = (8.0, 1.0, 4.0, 8192)
MODELS = {
    "llama-3.1-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, 131072, 5e5, rope_scaling=_LLAMA3, tied=False),
    "qwen3-30b-a3b": Shape(
        "qwen3moe", 48, 2048, 768, 32, 4, 128, 151936, 40960, 1e6, 1e-6,
        qk_norm=True, tied=False, num_experts=128, num_experts_used=8,
    ),
    **SHAPES,
}  # fmt: skip
WEIGHTS = "bf16,q4_k,q8_0,fp8"
BITS = {"bf16": 16.0, "f16": 16.0, "q8_0": 8.5, "q4_k": 4.5, "q6_k": 6.5625, "fp8": 8.25}
PROBE_TIMEOUT_S = 300.0
"""The first start of torch on a machine reads gigabytes."""
MEMORY_FOLDER = Path("/dev/shm")
WARM_LAYERS = 2
"""The last layer is built in parts, all others alike: two have every kernel of a model."""
WARM_TIMEOUT_S = 240.0

Step = tuple[str, int]
"""("decode", sequences) or ("prefill", tokens)."""


@dataclass(frozen=True)
class Sizes:
    """What is measured of each model, in this order; decoding begins at `depth`."""

    steps: tuple[Step, ...]
    depth: int = 512
    decode: int = 32
    repeat: int = 3

    @property
    def max_num_seqs(self) -> int:
        """Most sequences of a step."""
        return max((n for kind, n in self.steps if kind == "decode"), default=1)

    @property
    def longest_prompt(self) -> int:
        """In tokens."""
        return max((n for kind, n in self.steps if kind == "prefill"), default=1)


FIRST = Sizes((("decode", 1), ("prefill", 4096), ("decode", 64), ("prefill", 512)))
REST = Sizes((("decode", 16), ("decode", 4), ("decode", 256)))
TINY = Sizes((("decode", 1), ("prefill", 8), ("decode", 2)), depth=4, decode=2, repeat=1)
MOST_OF_PEER = 64
"""Sequences; a static cache of more is no use of transformers that anyone makes."""


@dataclass(frozen=True)
class Job:
    """One model loaded once: by the runtime with `weights`, or by transformers."""

    model: str
    weights: str
    sizes: Sizes
    is_peer: bool = False

    @property
    def name(self) -> str:
        """In reports."""
        return f"{self.model} {'transformers' if self.is_peer else self.weights}"


@dataclass(frozen=True)
class Row:
    """One measurement. `share` is of the ceiling that bounds it: copied bytes when decoding, operations in prefill."""

    engine: str
    model: str
    weights: str
    kind: str
    batch: int
    num_tokens: int
    tokens_per_s: float
    spread: float
    share: float
    replayed: str = ""


def make_jobs(models: list[str], weights: list[str], *, is_tiny: bool, has_peer: bool) -> list[Job]:
    """What matters most comes first: the first two formats and the peer at the first sizes, by model; then the rest."""
    jobs = []
    all_stages = ((FIRST, weights[:2]), (FIRST, weights[2:]), (REST, weights))
    for sizes, formats in ((TINY, weights),) if is_tiny else all_stages:
        peer = replace(sizes, steps=tuple(s for s in sizes.steps if s[0] == "prefill" or s[1] <= MOST_OF_PEER))
        for model in models:
            # of a model with experts the smaller file first: in bf16 it fills most machines
            ordered = formats[::-1] if MODELS[model].num_experts else formats
            jobs += [Job(model, fmt, sizes) for fmt in ordered]
            if has_peer and formats[:1] == weights[:1]:
                jobs.append(Job(model, "bf16", peer, is_peer=True))
    return jobs


def make_file(name: str, shape: Shape, weights: str, folder: Path) -> Path:
    """A model file, or a directory with FP8 weights; made where there is none."""
    if weights == "fp8":
        path = folder / f"{name}-fp8"
        if not (path / "model.safetensors").exists():
            write_fp8_model(path, shape, {**hf_config(shape).to_dict(), "architectures": [hf_class(shape)]})
        return path
    path = folder / f"{name}-{weights}.gguf"
    if not path.exists():
        write_model(path, shape, weights)
    return path


def remove_file(path: Path) -> None:
    """What `make_file` made."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def file_bytes(shape: Shape, weights: str) -> int:
    """About what `make_file` takes."""
    elements = 0
    for sizes in tensor_shapes(shape).values():
        size = 1
        for n in sizes:
            size *= n
        elements += size
    return int(elements * BITS.get(weights, 16.0) / 8)


def folder_for(nbytes: int, work: Path) -> Path | None:
    """Where a file of so many bytes has room: memory before the disk, which would take minutes; None for nowhere."""
    has_memory = _available_memory() > 2 * nbytes
    for folder in (MEMORY_FOLDER, work) if has_memory else (work,):
        has_room = folder.is_dir() and shutil.disk_usage(folder).free > 1.1 * nbytes
        if has_room and os.access(folder, os.W_OK):
            return folder
    return None


def _available_memory() -> int:
    from runtime.backend import host_memory

    return host_memory()[0]


def measure_runtime(
    backend: str, job: Job, path: Path, ceilings: Ceilings, profiled: tuple[int, ...]
) -> Iterator[Row | Profile]:
    """Through the engine's executor, as `runtime bench` does; then where the time of decoding steps goes."""
    from runtime.engine.bench import BenchPlan, measure
    from runtime.engine.config import EngineConfig
    from runtime.engine.loading import load

    sizes = job.sizes
    deepest = sizes.depth + sizes.decode
    # every sequence of a plan has room for its longest measurement; plans have one size each, so that blocks are few
    num_kv_blocks = max(sizes.max_num_seqs * (deepest // 16 + 2), sizes.longest_prompt // 16 + 2)
    config = EngineConfig(
        path,
        backend=backend,
        fallback="forbid",
        max_num_seqs=sizes.max_num_seqs,
        max_num_batched_tokens=max(sizes.longest_prompt, sizes.max_num_seqs, sizes.depth),
        max_model_len=max(deepest, sizes.longest_prompt) + 1,
        num_kv_blocks=num_kv_blocks,
    )
    loaded = load(config)
    try:
        for kind, size in sizes.steps:
            if kind == "decode":
                plan = BenchPlan((), sizes.decode, (sizes.depth,), (size,), sizes.repeat)
            else:
                plan = BenchPlan((size,), 0, (), (1,), sizes.repeat)
            for m in measure(loaded, plan):
                is_decode = m.kind == "decode"
                bound = ceilings.copy_bytes_per_s if is_decode else ceilings.matmul_operations_per_s
                reached = m.weight_bytes_per_s if is_decode else m.operations_per_s
                replays = sum(getattr(e, "num_replays", 0) for e in loaded.executor._executables)
                yield Row(
                    *("runtime", job.model, job.weights, m.kind, m.batch, m.num_tokens),
                    *(m.median_tokens_per_s, m.spread, reached / bound, str(replays)),
                )
        for batch in (b for b in profiled if ("decode", b) in sizes.steps):
            yield profile_decoding(loaded, job.model, job.weights, batch, sizes.depth, min(8, sizes.decode // 2))
    finally:
        loaded.close()
        gc.collect()


def measure_peer(device: str, job: Job, shape: Shape, ceilings: Ceilings, *, compiles: bool) -> Iterator[Row]:
    """transformers on the same shape."""
    sizes = job.sizes
    known = {"depth": sizes.depth, "decode": sizes.decode, "repeat": sizes.repeat}
    for m in measure_transformers(device, shape, sizes.steps, compiles=compiles, **known):
        share = m.tokens_per_s / m.batch * m.weight_bytes / ceilings.copy_bytes_per_s
        if m.kind == "prefill":
            share = m.tokens_per_s * m.weight_bytes / ceilings.matmul_operations_per_s
        how = "compiled" if m.is_compiled else "eager"
        share = 0.0 if shape.num_experts else share  # which experts are read is not known here
        yield Row(
            "transformers", job.model, "bf16", m.kind, m.batch, m.num_tokens, m.tokens_per_s, m.spread, share, how
        )


def build_kernels(jobs: list[Job], backend: str, work: Path, num_jobs: int) -> None:
    """Measure models of two layers, side by side, so that every kernel lies built in Triton's cache."""
    started, running = time.perf_counter(), list[subprocess.Popen[bytes]]()
    deadline = time.monotonic() + WARM_TIMEOUT_S
    needed = sum(file_bytes(_warm_shape(job), job.weights) for job in jobs)
    folder = (folder_for(needed, work) or work) / f"hal-runtime-{os.getpid()}"
    folder.mkdir()
    # what this process can import, those can
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        for job in jobs:
            make_file(job.model, _warm_shape(job), job.weights, folder)
            for kind, size in job.sizes.steps:
                while sum(p.poll() is None for p in running) >= num_jobs and time.monotonic() < deadline:
                    time.sleep(0.1)
                step = [job.model, job.weights, kind, str(size), str(job.sizes.depth)]
                command = [sys.executable, __file__, "--backend", backend, "--work", str(folder), "--warm", *step]
                with (work / f"warm-{'-'.join(step[:4])}.log").open("wb") as log:
                    running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        for process in running:
            _end_by(process, deadline)
    finally:
        for process in running:
            _end_by(process, 0.0)
        shutil.rmtree(folder, ignore_errors=True)
    failed = sum(p.returncode != 0 for p in running)
    how = f"{len(running)} processes, {failed} failed (logs in {work})"
    print(f"kernels built in {time.perf_counter() - started:.0f} s by {how}", file=sys.stderr, flush=True)


def _end_by(process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _warm_shape(job: Job) -> Shape:
    return replace(MODELS[job.model], num_layers=WARM_LAYERS)


def warm_one(args: argparse.Namespace) -> int:
    """What one of these processes does."""
    name, weights, kind, size, depth = args.warm
    job = Job(name, weights, Sizes(((kind, int(size)),), int(depth), decode=2, repeat=1))
    path = make_file(name, _warm_shape(job), weights, args.work)
    for _ in measure_runtime(args.backend, job, path, Ceilings(1.0, 1.0), ()):
        pass
    return 0


def environment(backend: str, has_peer: bool) -> dict[str, Any]:
    """Machine, versions and date: what makes figures comparable."""
    import torch
    import triton

    from runtime.registry import choose, discover

    device = choose(discover(), backend, timeout_s=PROBE_TIMEOUT_S).device
    facts = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": device.name,
        "driver": device.driver,
        "details": dict(device.details),
        "host": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    if has_peer:
        import transformers

        facts["transformers"] = transformers.__version__
    return facts


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| model | weights | step | batch | engine | tok/s | spread | share of the ceiling |", "|" + "---|" * 8]
    for r in sorted(rows, key=lambda r: (r.model, r.kind, r.num_tokens, r.batch, r.weights, r.engine)):
        step = f"{r.kind} {r.num_tokens}" if r.kind == "prefill" else r.kind
        engine = f"{r.engine} {r.replayed}" if r.engine == "transformers" else r.engine
        figures = f"{r.tokens_per_s:.1f} | {100 * r.spread:.0f} % | {100 * r.share:.0f} %"
        lines.append(f"| {r.model} | {r.weights} | {step} | {r.batch} | {engine} | {figures} |")
    return "\n".join(lines)


class Results:
    """What was measured so far, in files of the work folder that are written anew with every figure."""

    def __init__(self, folder: Path, facts: dict[str, Any], deadline: float) -> None:
        self._folder, self._facts = folder, facts
        self._deadline = deadline
        self.rows: list[Row] = []
        self.products: list[Product] = []
        self.profiles: list[Profile] = []
        self.skipped: dict[str, str] = {}
        self.write()

    @property
    def seconds_left(self) -> float:
        """Until no new measurement begins."""
        return self._deadline - time.monotonic()

    def collect(self, what: str, measurements: Iterator[Any]) -> None:
        """Take figures until there are no more, or no time. What fails is noted, and the next may begin."""
        kinds: dict[type, list[Any]] = {Row: self.rows, Product: self.products, Profile: self.profiles}
        try:
            for made in measurements:
                kinds[type(made)].append(made)
                if not isinstance(made, Profile):
                    print(made, file=sys.stderr, flush=True)
                self.write()
                if self.seconds_left <= 0:
                    self.skip(what, "time ran out before its last figures")
                    break
        except Exception as error:  # noqa: BLE001  (a finding; the others are measured all the same)
            self.skip(what, f"{type(error).__name__}: {error}")
        finally:
            if isinstance(measurements, Generator):
                measurements.close()

    def skip(self, what: str, reason: str) -> None:
        """Note what was not measured."""
        self.skipped[what] = reason
        print(f"{what}: {reason}", file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        """gpu.json and gpu.md."""
        measured = {"rows": self.rows, "products": self.products, "profiles": self.profiles}
        report = {"environment": self._facts, **{n: [asdict(m) for m in made] for n, made in measured.items()}}
        text = json.dumps({**report, "skipped": self.skipped}, indent=1)
        for name, content in (("gpu.json", text), ("gpu.md", self.text())):
            (self._folder / f"{name}.new").write_text(content, "utf-8")
            (self._folder / f"{name}.new").replace(self._folder / name)

    def text(self) -> str:
        """Markdown: the device, all rows, and what is missing."""
        ceilings = self._facts["ceilings"]
        copied, product = ceilings["copy_bytes_per_s"] / 1e9, ceilings["matmul_operations_per_s"] / 1e12
        rates = f"copy {copied:.0f} GB/s, bf16 product {product:.1f} TFLOP/s"
        lines = [f"{self._facts['device']}, {self._facts['date']}: {rates}", ""]
        lines += [table(self.rows), ""] if self.rows else []
        lines += [products_table(self.products), ""] if self.products else []
        lines += [f"{profile_table(p)}\n" for p in self.profiles]
        return "\n".join([*lines, *(f"- not measured: {what}: {why}" for what, why in self.skipped.items()), ""])


def products_of(shape: Shape) -> tuple[tuple[int, int], ...]:
    """(N, K) of a model's products."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    all_of_them = ((shape.num_heads * shape.head_dim, hidden), (inner, hidden), (hidden, inner))
    return tuple(dict.fromkeys((*all_of_them, (shape.num_kv_heads * shape.head_dim, hidden))))


def run_products(args: argparse.Namespace, results: Results, ceilings: Ceilings) -> None:
    """`--products`: the first model's."""
    from runtime.backend import DeviceConfig
    from runtime.registry import choose, discover

    choice = choose(discover(), args.backend, timeout_s=PROBE_TIMEOUT_S)
    device = choice.backend.open(choice.device, DeviceConfig())
    formats = tuple("f8_e4m3_g128" if w == "fp8" else w for w in args.weights.split(","))
    rows, *limits = ((1, 8), 1, 1) if args.dry_run else (ROWS,)
    shapes = products_of(MODELS[args.models.split(",")[0]])
    try:
        results.collect("products", measure_products(device, formats, shapes, rows, ceilings, *limits))
    finally:
        device.close()


def run_jobs(args: argparse.Namespace, jobs: list[Job], results: Results, ceilings: Ceilings) -> None:
    """Measure in order until time is over; the kernels of a model at new sizes are built before it."""
    built: set[tuple[str, Sizes]] = set()
    for job in jobs:
        if results.seconds_left <= 0:
            results.skip(job.name, f"{args.minutes:g} minutes were over")
            continue
        alike = [j for j in jobs if (j.model, j.sizes, j.is_peer) == (job.model, job.sizes, False)]
        if args.jobs > 1 and not job.is_peer and (job.model, job.sizes) not in built:
            built.add((job.model, job.sizes))
            build_kernels(alike, args.backend, args.work, args.jobs)
        shape = MODELS[job.model]
        if job.is_peer:
            results.collect(job.name, measure_peer(args.device, job, shape, ceilings, compiles=not args.dry_run))
            continue
        needed = file_bytes(shape, job.weights)
        folder = folder_for(needed, args.work)
        if folder is None:
            results.skip(job.name, f"its file takes {needed / 1e9:.0f} GB, more than is free")
            continue
        path = make_file(job.model, shape, job.weights, folder)
        profiled = (1, 64) if args.profile else ()
        try:
            results.collect(job.name, measure_runtime(args.backend, job, path, ceilings, profiled))
        finally:
            remove_file(path)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cuda", help="backend to measure (cuda)")
    parser.add_argument("--device", default="cuda", help="its torch device type, for ceilings and the peer (cuda)")
    parser.add_argument("--models", default="llama-3.1-8b,qwen3-30b-a3b", help="comma separated")
    parser.add_argument("--weights", default=WEIGHTS, help=f"formats, comma separated ({WEIGHTS})")
    parser.add_argument("--work", type=Path, default=Path("build/gpu"), help="folder for results and model files")
    parser.add_argument("--minutes", type=float, default=60.0, help="no new measurement begins after so many (60)")
    parser.add_argument("--products", action="store_true", help="only products of one shape, by format and rows")
    parser.add_argument("--profile", action="store_true", help="besides, the kernels of decoding steps by time")
    parser.add_argument("--no-peer", action="store_true", help="without transformers")
    most = max(1, min(8, (os.cpu_count() or 1) // 2))
    parser.add_argument("--jobs", type=int, default=most, help=f"processes that build kernels, 1: none ({most})")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, no compiler; figures mean nothing")
    parser.add_argument("--warm", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write all figures as JSON."""
    started = time.monotonic()
    args = parsed(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.warm:
        return warm_one(args)
    facts = environment(args.backend, not args.no_peer)
    ceilings = measure_ceilings(args.device, is_tiny=args.dry_run)
    facts |= {"dry_run": args.dry_run, "ceilings": asdict(ceilings)}
    results = Results(args.work, facts, started + 60 * args.minutes)
    if args.products:
        run_products(args, results, ceilings)
    else:
        formats = args.weights.split(",")
        jobs = make_jobs(args.models.split(","), formats, is_tiny=args.dry_run, has_peer=not args.no_peer)
        run_jobs(args, jobs, results, ceilings)
    if args.dry_run:
        print("dry run: the figures say nothing about any device")
    print(results.text())
    return 0 if results.rows or results.products else 1


if __name__ == "__main__":
    sys.exit(main())
