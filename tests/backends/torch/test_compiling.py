"""The kernels compile for chips that are not here, down to the chip's own instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("target", "least"),
    [
        *((target, 50) for target in ("sm90", "gfx942", "sm90:models", "gfx942:models")),
        # of chips with less shared memory or other settings the largest tiles; compile_kernels.py alone does all of all
        *((f"{chip}:largest", 4) for chip in ("sm75", "sm86", "gfx1100", "xpu-dg2")),
    ],
)
def test_every_kernel_compiles_and_fits_the_shared_memory_of_the_chip(target: str, least: int, tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    program = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, program, target], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(f"\n{target}") + 1 >= least


def test_every_chip_that_a_backend_accepts_has_a_target(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from targets import TARGETS

    from runtime_cuda.plugin import MIN_CAPABILITY
    from runtime_rocm.plugin import MATRIX_CORES

    assert f"sm{MIN_CAPABILITY[0]}{MIN_CAPABILITY[1]}" in TARGETS
    assert {*MATRIX_CORES, "gfx1100", "gfx1201"} <= set(TARGETS)
    settings = {name: target.settings() for name, target in TARGETS.items()}
    assert {name for name, s in settings.items() if s.precision == "f32"} == {"sm75", "sm86-f32", "gfx942-f32"}
    without_fp8 = {"sm75", "sm80", "sm86", "sm87", "sm86-f32"} | {
        n for n in TARGETS if n.startswith(("xpu", "gfx9", "gfx11"))
    }
    assert {name for name, s in settings.items() if not s.fp8} == without_fp8 - {"gfx942", "gfx942-f32", "gfx950"}
