"""Measure prefill and decoding beside the limits of the machine."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.cli.arguments import add_placement, add_weight_cache, model_path, placement
from runtime.cli.machine import describe_machine
from runtime.cli.output import LoadProgress, plural, status, table
from runtime.errors import InvalidArgument

if TYPE_CHECKING:
    from runtime.engine.bench import Measurement
    from runtime.engine.loading import Loaded

SCHEMA = "runtime-bench/1"
DEFAULT_CHUNK = 512
HEADER = (
    "kind",
    "tokens",
    "depth",
    "batch",
    "tokens/s",
    "spread",
    "ms/step",
    "weights GB/s",
    "of read",
    "GOP/s",
    "of peak",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("-m", "--model", metavar="PATH", help="GGUF file or Hugging Face directory (the demo model)")
    group = parser.add_argument_group("what to measure; lists are separated by commas")
    group.add_argument("--prefill", type=_sizes, default=(512,), metavar="N,..", help="prompt lengths; 0: none (512)")
    group.add_argument("--decode", type=int, default=64, metavar="N", help="tokens per sequence; 0: none (64)")
    group.add_argument("--depth", type=_sizes, default=(0,), metavar="N,..", help="tokens computed before decoding (0)")
    group.add_argument("--batch", type=_sizes, default=(1,), metavar="N,..", help="sequences that decode together (1)")
    group.add_argument("--repeat", type=int, default=5, metavar="N", help="repetitions of each measurement (5)")
    add_placement(parser)
    add_weight_cache(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", dest="json_file", metavar="FILE", help="write records and facts; - is stdout")
    group.add_argument("-q", "--quiet", action="store_true", help="no status lines")


def run(args: argparse.Namespace) -> int:
    """Execute the verb; returns the exit code."""
    from runtime.engine.bench import BenchPlan, loaded_facts, measure
    from runtime.engine.ceilings import measure_ceilings
    from runtime.engine.config import EngineConfig
    from runtime.engine.loading import load

    if args.json_file not in (None, "-"):
        _check_writable(Path(args.json_file))
    prefill = tuple(n for n in args.prefill if n)
    plan = BenchPlan(prefill, args.decode, args.depth, args.batch, args.repeat)
    settings = placement(args)
    settings["max_model_len"] = settings["max_model_len"] or plan.max_model_len
    config = EngineConfig(
        model_path(args.model),
        **settings,
        weight_cache=args.weight_cache,
        max_num_seqs=plan.max_num_seqs,
        max_num_batched_tokens=max(DEFAULT_CHUNK, plan.max_num_seqs),
    )
    progress = LoadProgress()
    started = time.perf_counter()
    try:
        loaded = load(config, progress)
    finally:
        progress.finish()
    load_s = time.perf_counter() - started
    try:
        tell = _ignore if args.quiet else status
        for line in loaded.status:
            tell(line)
        threads = _threads(loaded)
        device = next(iter(loaded.devices.values()))
        before = measure_ceilings(device, threads)
        found = list(measure(loaded, plan, tell))
        after = measure_ceilings(device, threads)
        ceilings = {"threads": threads, "before": before, "after": after}
        document = {
            "schema": SCHEMA,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine_facts(),
            "loaded": loaded_facts(loaded),
            "load_s": load_s,
            "plan": {"repeat": plan.repeat, "max_num_batched_tokens": config.max_num_batched_tokens},
            "ceilings": ceilings,
            "records": [_record(m, before, after) for m in found],
            "max_resident_bytes": _max_resident_bytes(),
        }
    finally:
        loaded.close()
    _write(document, args.json_file)
    return 0


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory and versions, as plain data."""
    machine = describe_machine()
    return {
        "processor": _processor(),
        "num_cores": machine.num_cores,
        "num_usable_cores": machine.num_usable_cores,
        "cores_reason": machine.cores_reason,
        "memory_bytes": machine.memory_bytes,
        "system": machine.system,
        "python": machine.python.split(" ")[0],
        "runtime": machine.runtime,
        "git_commit": _git_commit(),
        "packages": machine.packages,
    }


def _record(m: Measurement, before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """A measurement with its shares of the ceilings; of two measurements of a ceiling the higher one counts."""
    ceilings = {name: max(before[name], after[name]) for name in before}
    return {
        **m.to_json(),
        "share_of_read": m.weight_bytes_per_s / ceilings["read_bytes_per_s"],
        "share_of_operations": m.operations_per_s / ceilings["operations_per_s"],
    }


def _write(document: dict[str, Any], target: str | None) -> None:
    text = json.dumps(document, indent=1, ensure_ascii=False)
    if target == "-":
        print(text)
        return
    print(describe(document))
    if target is not None:
        Path(target).write_text(text + "\n", encoding="utf-8")


def describe(document: dict[str, Any]) -> str:
    """The table for a person, with the ceilings below it."""
    rows = [HEADER, *(_row(record) for record in document["records"])]
    lines = [table(_right_aligned(rows))]
    ceilings = document["ceilings"]
    for name, unit in (("read_bytes_per_s", "GB/s read"), ("operations_per_s", "GOP/s")):
        before, after = ceilings["before"][name] / 1e9, ceilings["after"][name] / 1e9
        lines.append(f"ceiling, {plural(ceilings['threads'], 'thread')}: {before:.1f} {unit} before, {after:.1f} after")
    resident = document["max_resident_bytes"]
    memory = "" if resident is None else f", at most {resident / 1e9:.2f} GB resident"
    lines.append(f"loaded in {document['load_s']:.2f} s{memory}")
    return "\n".join(lines)


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    return (
        record["kind"],
        str(record["num_tokens"]),
        str(record["depth"]),
        str(record["batch"]),
        _figure(record["median_tokens_per_s"]),
        f"{100 * record['spread']:.0f} %",
        _figure(1000 * record["step_s"]),
        _figure(record["weight_bytes_per_s"] / 1e9),
        f"{100 * record['share_of_read']:.0f} %",
        _figure(record["operations_per_s"] / 1e9),
        f"{100 * record['share_of_operations']:.0f} %",
    )


def _figure(value: float) -> str:
    """Three digits that mean something: 1234, 56.7, 0.89."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _right_aligned(rows: list[tuple[str, ...]]) -> list[list[str]]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    return [[row[0], *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))] for row in rows]


def _threads(loaded: Loaded) -> int:
    """Threads that the device says it uses; those of this process where it does not say."""
    device = next(iter(loaded.devices.values()))
    stated = device.info.details.get("threads", "")
    return int(stated) if stated.isdigit() else describe_machine().num_usable_cores


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers such as 1,8,32") from None


def _check_writable(path: Path) -> None:
    """Refuse at once what would otherwise fail after minutes of measuring."""
    try:
        path.open("a").close()
    except OSError as error:
        raise InvalidArgument(f"--json {path}: {error.strerror}", remedy="name a file that can be written") from error


def _processor() -> str:
    """The processor's model as the system calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "Hardware"):
                return value.strip()
    import platform

    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the source tree that this code runs from; None where it is installed without one."""
    git = shutil.which("git")
    folder = Path(__file__).resolve().parent
    if git is None or not any((parent / ".git").exists() for parent in folder.parents):
        return None
    done = subprocess.run(
        [git, "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
    )
    return done.stdout.strip() or None


def _max_resident_bytes() -> int | None:
    """The most memory that this process has held at once; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _ignore(line: str) -> None:
    """Where no status lines are wanted."""
