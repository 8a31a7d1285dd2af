"""How fast the command starts, and what it loads for that."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("numpy", "tokenizers", "jinja2", "pluggy", "gguf", "torch", "starlette", "uvicorn", "msgspec", "asyncio")


def fastest_ms(code: str, environment: dict[str, str], runs: int = 5) -> float:
    """Milliseconds of processor time that `code` prints, the best of some runs: other processes do not count."""
    times = []
    for _ in range(runs):
        done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
        times.append(float(done.stdout.splitlines()[-1]))
    return min(times)


def test_importing_the_package_takes_under_30_ms(environment: dict[str, str]) -> None:
    code = "import time; t = time.process_time(); import runtime; print(1e3 * (time.process_time() - t))"
    assert fastest_ms(code, environment) < 30


def test_help_takes_under_200_ms_from_the_start_of_the_interpreter(environment: dict[str, str]) -> None:
    code = "from runtime.cli import main; main(['help']); import time; print(1e3 * time.process_time())"
    assert fastest_ms(code, environment) < 200


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
