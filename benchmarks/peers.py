"""Measures this runtime beside llama.cpp: the same file, the same threads, taking turns in one run."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from models import MIXTURES, SHAPES, write_model
from random_blocks import FORMATS

from runtime.cli.bench import machine_facts
from runtime.cli.machine import describe_machine
from runtime.cli.output import table
from runtime.errors import RuntimeFault

SCHEMA = "runtime-peers/1"
ENGINES = ("runtime", "llama_cpp")
PAUSE_S = 0.1
"""Between turns: threads of the engine that has just finished spin for a while before they sleep."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
FOLDER = Path(__file__).resolve().parent
SPIN = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
while True:
    pass
"""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    prefill: int = 512
    decode: int = 32
    depth: int = 4096
    batch: int = 32
    repeat: int = 7
    starts: int = 5


QUICK = Sizes(prefill=128, decode=8, depth=512, batch=8, repeat=3, starts=2)


@dataclass
class Comparison:
    """Repetitions of one measurement in both engines, in the order in which they took turns.

    `values` are tokens per second, or seconds where `unit` is "s"; a ratio above 1 means that this runtime is faster.
    """

    name: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=lambda: {engine: [] for engine in ENGINES})

    def median(self, engine: str) -> float:
        """Of an engine's repetitions."""
        return statistics.median(self.values[engine])

    def spread(self, engine: str) -> float:
        """(largest - smallest) / median of an engine's repetitions."""
        values = self.values[engine]
        return (max(values) - min(values)) / self.median(engine)

    @property
    def ratios(self) -> list[float]:
        """Of neighbouring turns."""
        pairs = zip(*(self.values[engine] for engine in ENGINES))
        return [theirs / ours if self.unit == "s" else ours / theirs for ours, theirs in pairs]

    @property
    def ratio(self) -> float:
        """Of the medians."""
        ours, theirs = (self.median(engine) for engine in ENGINES)
        return theirs / ours if self.unit == "s" else ours / theirs

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "unit": self.unit,
            "values": self.values,
            "median": {engine: self.median(engine) for engine in ENGINES},
            "spread": {engine: self.spread(engine) for engine in ENGINES},
            "ratio": self.ratio,
            "ratios": self.ratios,
        }

    def row(self) -> list[str]:
        """Cells below `HEADER`."""
        cells = [self.name]
        for engine in ENGINES:
            cells += [f"{self.median(engine):.4g}".rjust(8), f"{100 * self.spread(engine):.0f} %".rjust(6)]
        return [*cells, self.unit, f"{self.ratio:.2f}".rjust(5), f"{min(self.ratios):.2f} .. {max(self.ratios):.2f}"]


HEADER = ["", "runtime ", "spread", "llama.cpp", "spread", "", "ratio", "of neighbouring turns"]


class Worker:
    """A process of `peer_worker.py`."""

    def __init__(self, engine: str, config: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(FOLDER / "peer_worker.py"), engine, json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(config["threads"]),
        )
        self.engine = engine
        self.loading = self._answer()

    def ask(self, what: str, **arguments: Any) -> Any:
        """Let the worker do something, and wait for its answer."""
        assert self._process.stdin is not None
        print(json.dumps({"do": what, **arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.communicate(timeout=60)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.engine} ended with {self._process.wait()}; its message is above")
        return json.loads(line)


def environment(threads: int) -> dict[str, str]:
    """Ours with every thread count pinned."""
    path = os.pathsep.join(p for p in (str(FOLDER), *sys.path) if p)
    return {**os.environ, "PYTHONPATH": path, **dict.fromkeys(THREAD_VARIABLES, str(threads))}


@contextmanager
def workers(config: Mapping[str, Any]) -> Iterator[dict[str, Worker]]:
    """Both engines with the model loaded."""
    opened: dict[str, Worker] = {}
    try:
        for engine in ENGINES:
            opened[engine] = Worker(engine, config)
        yield opened
    finally:
        for worker in opened.values():
            worker.close()


def take_turns(name: str, repeat: int, tokens: int, turn: Callable[[str], float]) -> Comparison:
    """`turn(engine)` returns seconds; one turn each is thrown away, then A B, B A, A B, ..."""
    comparison = Comparison(name, "tok/s" if tokens else "s")
    for engine in ENGINES:
        turn(engine)
    for i in range(repeat):
        for engine in ENGINES if i % 2 == 0 else ENGINES[::-1]:
            time.sleep(PAUSE_S)
            seconds = turn(engine)
            comparison.values[engine].append(tokens / seconds if tokens else seconds)
    print("  ".join(comparison.row()), file=sys.stderr, flush=True)
    return comparison


def compare(path: Path, sizes: Sizes, settings: Mapping[str, Any], only: tuple[str, ...]) -> dict[str, Any]:
    """Everything about one file."""
    path.read_bytes()  # into the page cache
    result: dict[str, Any] = {"model": path.name, "file_bytes": path.stat().st_size, "comparisons": []}
    found: list[Comparison] = []
    if {"prefill", "decode", "deep", "disturbed"} & set(only):
        length = max(sizes.prefill, sizes.depth + sizes.decode)
        with workers({**settings, "model": str(path), "max_model_len": length, "max_num_seqs": 1}) as both:
            result["facts"] = {engine: worker.ask("facts") for engine, worker in both.items()}
            result["load_s"] = {engine: worker.loading["load_s"] for engine, worker in both.items()}
            result["agreement"] = agreement(both)
            result["ceilings_before"] = both["runtime"].ask("ceilings")
            found += single_sequence(both, sizes, only)
            result["ceilings_after"] = both["runtime"].ask("ceilings")
    if "batch" in only:
        length = sizes.decode + 1
        with workers({**settings, "model": str(path), "max_model_len": length, "max_num_seqs": sizes.batch}) as both:
            found.append(decoding(both, f"{sizes.batch} sequences decoding", sizes, 0, sizes.batch))
    if "start" in only:
        found.append(take_turns("start to first token", sizes.starts, 0, lambda e: start(e, path, settings)))
    result["comparisons"] = [comparison.to_json() for comparison in found]
    print_result(result, found)
    return result


def single_sequence(both: Mapping[str, Worker], sizes: Sizes, only: tuple[str, ...]) -> Iterator[Comparison]:
    """Prefill and decoding of one sequence, undisturbed and disturbed."""
    if "prefill" in only:
        n = sizes.prefill
        yield take_turns(f"prefill {n}", sizes.repeat, n, lambda e: both[e].ask("prefill", num_tokens=n))
    if "decode" in only:
        yield decoding(both, "decode, empty context", sizes, 0, 1)
    if "disturbed" in only:
        spinning = subprocess.Popen([sys.executable, "-c", SPIN])
        try:
            yield decoding(both, "decode, a core taken", sizes, 0, 1)
        finally:
            spinning.kill()
            spinning.wait()
    if "deep" in only:
        yield decoding(both, f"decode at {sizes.depth}", sizes, sizes.depth, 1)


def decoding(both: Mapping[str, Worker], name: str, sizes: Sizes, depth: int, batch: int) -> Comparison:
    """Decoding from `depth` on with `batch` sequences."""
    for engine in ENGINES:
        both[engine].ask("fill", batch=batch, depth=depth)
    arguments = {"num_tokens": sizes.decode, "depth": depth, "batch": batch}
    return take_turns(name, sizes.repeat, batch * sizes.decode, lambda e: both[e].ask("decode", **arguments))


def start(engine: str, path: Path, settings: Mapping[str, Any]) -> float:
    """Seconds that a fresh process takes to load the file and give one token of a short answer."""
    if engine == "runtime":
        command = [sys.executable, "-m", "runtime", "run", "--raw", "-q", "-m", str(path), "-p", "a b c d"]
        command += ["-n", "1", "--temp", "0", "-c", "512", "-t", str(settings["threads"])]
        command += ["--backend", settings["backend"], "--ignore-eos"]
    else:
        config = {"model": str(path), "threads": settings["threads"], "max_model_len": 512, "max_num_seqs": 1}
        command = [sys.executable, str(FOLDER / "peer_worker.py"), engine, json.dumps({**config, "first_token": True})]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment(settings["threads"]))
    return time.perf_counter() - started


def agreement(both: Mapping[str, Worker]) -> dict[str, Any]:
    """Whether both compute the same model: logits after 24 fixed tokens, compared."""
    import numpy as np

    ours, theirs = (np.array(both[engine].ask("logits", num_tokens=24)) for engine in ENGINES)
    return {
        "correlation": float(np.corrcoef(ours, theirs)[0, 1]),
        "max_difference_in_deviations": float(np.abs(ours - theirs).max() / theirs.std()),
        "same_choice": bool(ours.argmax() == theirs.argmax()),
    }


def print_result(result: Mapping[str, Any], found: list[Comparison]) -> None:
    """The table for a person."""
    print(f"\n{result['model']} ({result['file_bytes'] / 1e6:.0f} MB)")
    print(table([HEADER, *(comparison.row() for comparison in found)]))
    if "agreement" in result:
        before, after = (result[f"ceilings_{when}"]["read_bytes_per_s"] / 1e9 for when in ("before", "after"))
        print(
            f"logits correlate at {result['agreement']['correlation']:.5f}; read bandwidth {before:.1f} GB/s before, ",
            end="",
        )
        print(f"{after:.1f} after; runtime: KV {result['facts']['runtime']['kv_format']}", flush=True)


PARTS = ("prefill", "decode", "disturbed", "deep", "batch", "start")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, metavar="FILE", help="GGUF files; or use --shape and --format")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.2-1b", help="of models with random weights")
    parser.add_argument(
        "--format", default="", metavar="F,..", help="formats of models with random weights, e.g. q4_0,q8_0"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/models"), help="where those are kept (build/models)")
    parser.add_argument("--vocab", type=Path, metavar="FILE", help="GGUF file whose tokenizer they take over")
    parser.add_argument("--threads", type=int, default=describe_machine().num_usable_cores)
    parser.add_argument("--backend", default="auto", help="of this runtime (auto)")
    parser.add_argument("--kv-format", help="of this runtime; llama.cpp keeps its default, f16")
    parser.add_argument("--repeat", type=int, help="turns of each engine (7; 3 with --quick)")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,..", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    args = parser.parse_args()
    if find_spec("llama_cpp") is None:
        parser.error("llama_cpp is not installed for this Python; docs/benchmarks.md says how to build it")
    only = tuple(args.only.split(","))
    formats = [f for f in args.format.split(",") if f]
    for unknown in [*(set(only) - set(PARTS)), *(set(formats) - set(FORMATS) - set(MIXTURES))]:
        parser.error(f"'{unknown}' is neither a part ({', '.join(PARTS)}) nor a format")
    if not args.models and not formats:
        parser.error("there is nothing to measure: name files, or --format")
    sizes = QUICK if args.quick else Sizes()
    if args.repeat:
        sizes = Sizes(sizes.prefill, sizes.decode, sizes.depth, sizes.batch, args.repeat, args.repeat)
    settings = {"threads": args.threads, "backend": args.backend, "kv_format": args.kv_format}
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "settings": {**settings, **vars(sizes)},
        "load_average": os.getloadavg(),
        "models": [],
    }
    for path in [*args.models, *(made(args, fmt) for fmt in formats)]:
        document["models"].append(compare(path, sizes, settings, only))
        if args.json:
            args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def made(args: argparse.Namespace, fmt: str) -> Path:
    """The file with random weights, written unless it is there."""
    path: Path = args.folder / f"{args.shape}-{fmt}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        write_model(partial, SHAPES[args.shape], fmt, vocab=args.vocab)
        partial.rename(path)
    return path


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeFault as error:
        sys.exit(f"error: {error}")
