"""What `make gpu` does in the minutes that there are: conformance on the device, then the benchmark.

Conformance goes from the smallest budget to the largest: each writes its report, and the next begins where what is left
of its time is enough for it, judged by the cases and seconds of the one before. Both parts leave their results in
build/gpu as they come, and either can be asked for alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("Q-GGUF-full", "MoE", "sampling", "deterministic", "capture")
BUDGETS = ("smoke", "pr", "full")
PROBE_TIMEOUT_S = 300
NUM_JOBS = max(2, min(8, (os.cpu_count() or 2) // 2))
"""Workers of conformance: most of its time goes into building kernels."""
SHARE = 0.4
"""Of the minutes, for conformance, where the benchmark is wanted too."""


def runtime(*arguments: str, timeout_s: float) -> int:
    """Exit code of a verb; 124 where it was ended, with all that it had started."""
    print("$ runtime", *arguments, flush=True)
    process = subprocess.Popen([sys.executable, "-m", "runtime", *arguments], start_new_session=True)
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return 124


def num_cases(backend: str, budget: str) -> int:
    """Cases of a budget: what `conformance list` shows has a line for each."""
    command = [sys.executable, "-m", "runtime", "conformance", "list", "--backend", backend, "--budget", budget]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.count("\n")


def run_conformance(backend: str, work: Path, deadline: float) -> int:
    """Exit code of the largest budget that there was time for; nonzero where one failed, or none came to its end."""
    finished, rate = "", 0.0
    profiles = [word for name in PROFILES for word in ("--profile", name)]
    for budget in BUDGETS:
        left = deadline - time.monotonic()
        cases = num_cases(backend, budget)
        if left <= 0 or (finished and cases * rate > left):
            print(f"conformance {budget}: {cases} cases need about {cases * rate:.0f} s, {max(0.0, left):.0f} are left")
            break
        started = time.monotonic()
        options = ["--backend", backend, "--level", "L2", "--budget", budget, "--jobs", str(NUM_JOBS), *profiles]
        code = runtime("conformance", "run", *options, "--out", str(work / f"conformance-{budget}"), timeout_s=left)
        seconds = time.monotonic() - started
        state = "was ended" if code == 124 else f"exit code {code}"
        _note(work, {budget: {"exit_code": code, "cases": cases, "seconds": round(seconds, 1)}})
        print(f"conformance {budget}: {state} after {seconds:.0f} s", flush=True)
        if code == 124:
            break
        if code:
            return code
        finished, rate = budget, seconds / max(1, cases)
    return 0 if finished else 1


def _note(work: Path, made: dict[str, object]) -> None:
    path = work / "conformance.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**known, **made}, indent=1), "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Doctor, conformance, benchmark; the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--part", default="all", choices=("all", "conformance", "benchmark"))
    parser.add_argument("--minutes", type=float, default=60.0, help="for everything together (60)")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu", help="folder for results")
    parser.add_argument("rest", nargs="*", help="options of gpu.py, after --")
    args = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * args.minutes
    args.work.mkdir(parents=True, exist_ok=True)
    code = runtime("doctor", args.backend, "--timeout", str(PROBE_TIMEOUT_S), timeout_s=PROBE_TIMEOUT_S + 60)
    if code:
        return code
    if args.part != "benchmark":
        share = 60 * args.minutes * (SHARE if args.part == "all" else 1.0)
        code = run_conformance(args.backend, args.work, min(deadline, time.monotonic() + share))
    if args.part != "conformance":
        left = max(0.5, (deadline - time.monotonic()) / 60)
        device = "xpu" if args.backend == "xpu" else "cuda"
        options = ["--backend", args.backend, "--device", device, "--minutes", f"{left:.2f}", "--work", str(args.work)]
        command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), *options, *args.rest]
        code = subprocess.run(command, check=False).returncode or code
    return code


if __name__ == "__main__":
    sys.exit(main())
