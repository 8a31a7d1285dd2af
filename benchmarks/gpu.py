"""Decoding and prefill on a GPU, beside transformers and beside the ceilings of the same device, all in one run.

Ceilings are the rate of a copy and of a product of bf16 matrices. The peer is transformers with a static cache and
torch.compile, in bf16, with random weights of the same shape. Every figure is a median with its spread. Model files
are made in the work folder when they are measured, and removed. gpu.json and gpu.md there hold what has been measured,
after every figure: a run may be ended at any time, and `--minutes` ends it by itself. A dry run measures tiny shapes on
whatever backend is named, without the compiler.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fp8_model import write_fp8_model
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
COPY_BYTES = 1 << 30
MATRIX_SIZE = 8192
REPEAT = 3


@dataclass(frozen=True)
class Sizes:
    """What is measured of each model."""

    batches: tuple[int, ...] = (1, 4, 16, 64, 256)
    prefill: tuple[int, ...] = (512, 4096)
    depth: int = 512
    decode: int = 32
    repeat: int = REPEAT


TINY = Sizes(batches=(1, 2), prefill=(8,), depth=4, decode=2, repeat=1)


@dataclass(frozen=True)
class Ceilings:
    """Of a device: bytes read and written by a copy, and operations of a product of bf16 matrices, per second."""

    copy_bytes_per_s: float
    matmul_operations_per_s: float


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


def seconds_of(
    work: Callable[[], object], device: str, repeat: int, prepare: Callable[[], object] = lambda: None
) -> list[float]:
    """Wall seconds of `repeat` runs after one that is not counted; `prepare` goes before each and is not counted."""
    import torch

    def synchronize() -> None:
        if device != "cpu":
            getattr(torch, device).synchronize()

    prepare()
    work()
    made = []
    for _ in range(repeat):
        prepare()
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        made.append(time.perf_counter() - started)
    return made


def measure_ceilings(device: str, *, is_tiny: bool) -> Ceilings:
    """A copy larger than any cache, and a square product."""
    import torch

    source = torch.ones((1 << 20 if is_tiny else COPY_BYTES) // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copy = min(seconds_of(lambda: target.copy_(source), device, REPEAT))
    size = 128 if is_tiny else MATRIX_SIZE
    a, b = (torch.randn((size, size), device=device).to(torch.bfloat16) for _ in range(2))
    y = torch.empty_like(a)
    product = min(seconds_of(lambda: torch.mm(a, b, out=y), device, REPEAT))
    return Ceilings(2 * source.numel() * 2 / copy, 2 * size**3 / product)


def make_file(name: str, weights: str, folder: Path) -> Path:
    """A model file, or a directory with FP8 weights; made where there is none."""
    if weights == "fp8":
        path = folder / f"{name}-fp8"
        if not (path / "model.safetensors").exists():
            config = hf_config(MODELS[name])
            write_fp8_model(path, MODELS[name], {**config.to_dict(), "architectures": [hf_class(MODELS[name])]})
        return path
    path = folder / f"{name}-{weights}.gguf"
    if not path.exists():
        write_model(path, MODELS[name], weights)
    return path


def file_bytes(name: str, weights: str) -> int:
    """About what `make_file` takes."""
    elements = 0
    for sizes in tensor_shapes(MODELS[name]).values():
        size = 1
        for n in sizes:
            size *= n
        elements += size
    return int(elements * BITS.get(weights, 16.0) / 8)


def measure_runtime(
    backend: str, name: str, weights: str, sizes: Sizes, ceilings: Ceilings, folder: Path
) -> Iterator[Row]:
    """Through the engine's executor, as `runtime bench` does: decoding first, which other rows are compared by."""
    from runtime.engine.bench import BenchPlan, measure
    from runtime.engine.config import EngineConfig
    from runtime.engine.loading import load

    path = make_file(name, weights, folder)
    # apart, as every sequence of a plan has room for the longest measurement of it
    decoding = BenchPlan((), sizes.decode, (sizes.depth,), sizes.batches, sizes.repeat)
    prompts = BenchPlan(sizes.prefill, 0, (), (1,), sizes.repeat)
    config = EngineConfig(
        path,
        backend=backend,
        fallback="forbid",
        max_num_seqs=decoding.max_num_seqs,
        max_num_batched_tokens=max(*sizes.prefill, decoding.max_num_seqs),
        max_model_len=max(decoding.max_model_len, prompts.max_model_len) + 1,
    )
    loaded = load(config)
    try:
        for plan in (decoding, prompts):
            for m in measure(loaded, plan):
                is_decode = m.kind == "decode"
                bound = ceilings.copy_bytes_per_s if is_decode else ceilings.matmul_operations_per_s
                reached = m.weight_bytes_per_s if is_decode else m.operations_per_s
                replays = sum(getattr(e, "num_replays", 0) for e in loaded.executor._executables)
                yield Row(
                    *("runtime", name, weights, m.kind, m.batch, m.num_tokens),
                    *(m.median_tokens_per_s, m.spread, reached / bound, str(replays)),
                )
    finally:
        loaded.close()
        gc.collect()


def hf_class(shape: Shape) -> str:
    """The class that reads such a checkpoint."""
    if shape.num_experts:
        return "Qwen3MoeForCausalLM"
    return "Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"


def hf_config(shape: Shape) -> Any:
    """The shape as transformers knows it."""
    import transformers

    common = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_model_len,
        "rms_norm_eps": shape.rms_norm_eps,
        "tie_word_embeddings": shape.tied,
    }
    if shape.num_experts:
        return transformers.Qwen3MoeConfig(
            **common,
            intermediate_size=shape.intermediate_size,
            moe_intermediate_size=shape.intermediate_size,
            num_experts=shape.num_experts,
            num_experts_per_tok=shape.num_experts_used,
        )
    kind = transformers.Qwen3Config if shape.qk_norm else transformers.LlamaConfig
    return kind(**common, intermediate_size=shape.intermediate_size)


def measure_transformers(device: str, name: str, sizes: Sizes, ceilings: Ceilings, *, compiles: bool) -> Iterator[Row]:
    """Steps of one token with a static cache, and prompts; bf16."""
    import torch
    from transformers import AutoModelForCausalLM, StaticCache

    config = hf_config(MODELS[name])
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    num_read = 2 * sum(p.numel() for p in model.parameters()) - 2 * model.get_input_embeddings().weight.numel()
    forward = torch.compile(model.forward, mode="reduce-overhead") if compiles else model.forward

    def steps(batch: int, length: int, count: int, start: int) -> list[float]:
        cache = StaticCache(config=config, max_cache_len=start + length * count + 1)
        ids = torch.zeros((batch, max(length, start)), dtype=torch.long, device=device)

        def fill() -> None:
            cache.reset()
            if start:
                model(ids[:, :start], past_key_values=cache, use_cache=True, logits_to_keep=1)

        def run() -> None:
            for _ in range(count):
                forward(ids[:, :length], past_key_values=cache, use_cache=True, logits_to_keep=1)

        return seconds_of(run, device, sizes.repeat, fill)

    with torch.inference_mode():
        for num_tokens in sizes.prefill:
            rate, spread = _rate(steps(1, num_tokens, 1, 0), num_tokens)
            share = rate * num_read / ceilings.matmul_operations_per_s if not MODELS[name].num_experts else 0.0
            yield Row("transformers", name, "bf16", "prefill", 1, num_tokens, rate, spread, share)
        for batch in sizes.batches:
            rate, spread = _rate(steps(batch, 1, sizes.decode, sizes.depth), batch * sizes.decode)
            share = rate / batch * num_read / ceilings.copy_bytes_per_s if not MODELS[name].num_experts else 0.0
            yield Row("transformers", name, "bf16", "decode", batch, sizes.decode, rate, spread, share)


def _rate(seconds: list[float], num_tokens: int) -> tuple[float, float]:
    rates = [num_tokens / s for s in seconds]
    middle = statistics.median(rates)
    return middle, (max(rates) - min(rates)) / middle


def environment(backend: str) -> dict[str, Any]:
    """Machine, versions and date: what makes figures comparable."""
    import torch
    import transformers
    import triton

    from runtime.registry import choose, discover

    device = choose(discover(), backend).device
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": device.name,
        "driver": device.driver,
        "details": dict(device.details),
        "host": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
    }


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| model | weights | step | batch | engine | tok/s | spread | share of the ceiling |", "|" + "---|" * 8]
    for r in sorted(rows, key=lambda r: (r.model, r.kind, r.num_tokens, r.batch, r.weights, r.engine)):
        step = f"{r.kind} {r.num_tokens}" if r.kind == "prefill" else r.kind
        figures = f"{r.tokens_per_s:.1f} | {100 * r.spread:.0f} % | {100 * r.share:.0f} %"
        lines.append(f"| {r.model} | {r.weights} | {step} | {r.batch} | {r.engine} | {figures} |")
    return "\n".join(lines)


class Results:
    """What was measured so far, in files of the work folder that are written anew with every figure."""

    def __init__(self, folder: Path, facts: dict[str, Any], minutes: float) -> None:
        self._folder, self._facts = folder, facts
        self._deadline = time.monotonic() + 60 * minutes
        self.rows: list[Row] = []
        self.skipped: dict[str, str] = {}
        self.write()

    @property
    def seconds_left(self) -> float:
        """Until no new measurement begins."""
        return self._deadline - time.monotonic()

    def collect(self, what: str, measurements: Iterator[Row]) -> None:
        """Take figures until there are no more, or no time. What fails is noted, and the next may begin."""
        try:
            for row in measurements:
                self.rows.append(row)
                print(row, file=sys.stderr, flush=True)
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
        report = {"environment": self._facts, "rows": [asdict(r) for r in self.rows], "skipped": self.skipped}
        (self._folder / "gpu.json").write_text(json.dumps(report, indent=1), "utf-8")
        (self._folder / "gpu.md").write_text(self.text(), "utf-8")

    def text(self) -> str:
        """Markdown: the device, all rows, and what is missing."""
        ceilings = self._facts["ceilings"]
        copied, product = ceilings["copy_bytes_per_s"] / 1e9, ceilings["matmul_operations_per_s"] / 1e12
        rates = f"copy {copied:.0f} GB/s, bf16 product {product:.1f} TFLOP/s"
        head = f"{self._facts['device']}, {self._facts['date']}: {rates}"
        missing = [f"- not measured: {what}: {reason}" for what, reason in self.skipped.items()]
        return "\n".join([head, "", table(self.rows), *missing, ""])


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cuda", help="backend to measure (cuda)")
    parser.add_argument("--device", default="cuda", help="its torch device type, for ceilings and the peer (cuda)")
    parser.add_argument("--models", default="llama-3.1-8b,qwen3-30b-a3b", help="comma separated")
    parser.add_argument("--weights", default=WEIGHTS, help=f"formats, comma separated ({WEIGHTS})")
    parser.add_argument("--work", type=Path, default=Path("build/gpu"), help="folder for model files and results")
    parser.add_argument("--minutes", type=float, default=60.0, help="no new measurement begins after so many (60)")
    parser.add_argument("--keep", action="store_true", help="leave the model files for the next run")
    parser.add_argument("--no-peer", action="store_true", help="without transformers")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, no compiler; figures mean nothing")
    args = parser.parse_args(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    sizes = TINY if args.dry_run else Sizes()
    ceilings = measure_ceilings(args.device, is_tiny=args.dry_run)
    facts = {**environment(args.backend), "dry_run": args.dry_run, "ceilings": asdict(ceilings)}
    results = Results(args.work, facts, args.minutes)
    for name in args.models.split(","):
        for weights in args.weights.split(","):
            what, needed = f"{name} {weights}", file_bytes(name, weights)
            if results.seconds_left <= 0:
                results.skip(what, f"{args.minutes:g} minutes were over")
            elif shutil.disk_usage(args.work).free < 1.1 * needed:
                results.skip(what, f"its file takes {needed / 1e9:.0f} GB, more than is free in {args.work}")
            else:
                results.collect(what, measure_runtime(args.backend, name, weights, sizes, ceilings, args.work))
                if not args.keep:
                    remove_files(name, weights, args.work)
        what = f"{name} transformers"
        if args.no_peer or results.seconds_left <= 0:
            results.skip(what, "not asked for" if args.no_peer else f"{args.minutes:g} minutes were over")
            continue
        peer = replace(sizes, batches=tuple(b for b in sizes.batches if b <= 64))
        results.collect(what, measure_transformers(args.device, name, peer, ceilings, compiles=not args.dry_run))
    if args.dry_run:
        print("dry run: the figures say nothing about any device")
    print(results.text())
    return 0 if results.rows else 1


def remove_files(name: str, weights: str, folder: Path) -> None:
    """What `make_file` made."""
    if weights == "fp8":
        shutil.rmtree(folder / f"{name}-fp8", ignore_errors=True)
    else:
        (folder / f"{name}-{weights}.gguf").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
