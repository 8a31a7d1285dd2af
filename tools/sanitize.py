"""Runs the tests of the native kernels under sanitizers; prints what these report and exits with 1 if it is anything.

- addresses and undefined behaviour: the whole library, in build/sanitize, every variant that this processor can run and
  those that exist for tests alone, under tests/backends/cpu
- races: the thread pool, under tests/backends/cpu/drivers/pool_race.cpp

Memory is then allocated to the byte, so that whatever reads or writes beyond it is found. Needs cmake and g++.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "backends/cpu/csrc"
DRIVERS = ROOT / "tests/backends/cpu/drivers"
BUILD = ROOT / "build/sanitize"
COMPILER = os.environ.get("CXX", "g++")
# Resident memory is not the library's own under a sanitizer.
LEFT_OUT = "--ignore=tests/backends/cpu/test_memory.py"
TESTS = ("tests/backends/cpu", LEFT_OUT, "-m", "not oracle and not slow", "--timeout", "600")
MARKS = ("runtime error:", "ERROR: AddressSanitizer")


def build_library() -> Path:
    """The library with both sanitizers; built again only where sources changed."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = ["-DRT_TEST_VARIANTS=ON", "-DRT_SANITIZE=address,undefined"]
    configure = ["cmake", "-S", SOURCES, "-B", BUILD, *generator, *options]
    # the compiler as a variable of the environment: as an option of a second run it would build everything again
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"CXX": COMPILER})
    subprocess.run(["cmake", "--build", BUILD, "--parallel", "2"], check=True)
    return next(BUILD.glob("libruntime_cpu.so"))


def runtime_library(name: str) -> str:
    """A library of the compiler's that must be loaded before Python itself."""
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        sys.exit(f"{COMPILER} has no {name}: install g++ with its sanitizers, and name it in CXX")
    return str(path.resolve())


def run_tests(library: Path) -> bool:
    """Whether the tests pass and nothing was reported."""
    report = BUILD / "report.txt"
    environment = os.environ | {
        "RUNTIME_CPU_LIBRARY": str(library),
        "LD_PRELOAD": f"{runtime_library('libasan.so')} {runtime_library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter keeps what it has until its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    # Reports go to standard error: pytest must neither keep it to itself nor take it with it when a process dies.
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--capture=no", *TESTS, *sys.argv[1:]]
    with report.open("w") as file:
        passed = subprocess.run(command, cwd=ROOT, env=environment, stderr=file).returncode == 0
    found = [line for line in report.read_text("utf-8", "replace").splitlines() if any(mark in line for mark in MARKS)]
    for line in sorted(set(found)):
        print(line, file=sys.stderr)
    if found:
        print(f"{len(found)} reports in {report}", file=sys.stderr)
    return passed and not found


def run_pool() -> bool:
    """Whether the pool shares out all work without a race."""
    program = BUILD / "pool_race"
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{SOURCES / 'step'}"]
    sources = [DRIVERS / "pool_race.cpp", SOURCES / "step/pool.cpp"]
    subprocess.run([COMPILER, *flags, *sources, "-o", program], check=True)
    return subprocess.run([program], env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}).returncode == 0


def main() -> int:
    """0 when nothing was found."""
    library = build_library()
    clean = [run_pool(), run_tests(library)]
    print("sanitizers: nothing found" if all(clean) else "sanitizers: see above")
    return 0 if all(clean) else 1


if __name__ == "__main__":
    raise SystemExit(main())
