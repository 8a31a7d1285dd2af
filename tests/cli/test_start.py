"""How fast the command starts, and what it loads for that."""

from __future__ import annotations

import subprocess
import sys
import time

HEAVY = ("numpy", "tokenizers", "jinja2", "pluggy", "gguf", "torch")


def best_of(runs: int, code: str, environment: dict[str, str]) -> float:
    """Seconds of the fastest run of `code`, less those of an interpreter that does nothing."""
    return max(0.0, fastest(runs, code, environment) - fastest(runs, "pass", environment))


def fastest(runs: int, code: str, environment: dict[str, str]) -> float:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return min(times)


def test_importing_the_package_takes_under_30_ms(environment: dict[str, str]) -> None:
    assert best_of(5, "import runtime", environment) < 0.030


def test_help_appears_within_200_ms(environment: dict[str, str]) -> None:
    code = "import sys; from runtime.cli import main; sys.exit(main(['--help']))"
    assert fastest(5, code, environment) < 0.200


def test_help_loads_nothing_heavy(environment: dict[str, str]) -> None:
    code = f"""
import sys
from runtime.cli import VERBS, main
main(["--help"])
for verb in VERBS:
    try:
        main([verb, "--help"])
    except SystemExit as left:
        assert left.code == 0, verb
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
