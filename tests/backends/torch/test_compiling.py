"""The kernels compile for chips that are not here, down to the chip's own instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("target", ["sm90", "gfx942", "sm90:models", "gfx942:models"])
def test_every_kernel_compiles_and_fits_the_shared_memory_of_the_chip(target: str, tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    program = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, program, target], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(target) >= 50


@pytest.mark.parametrize("target", ["sm90", "gfx942"])
def test_sampling_compiles_and_has_no_use_for_float64(target: str, tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    program = Path(__file__).with_name("compile_sampling.py")
    done = subprocess.run([sys.executable, program, target], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(target) >= 16
    assert "float64" not in done.stdout
