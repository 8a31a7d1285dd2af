"""What a product of few rows costs on a chip: it is bound by memory only while it issues few instructions per weight."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.timeout(600)]

LIMITS = {
    "q4_k:4096x14336": (4.2, 4.3),
    "q4_k:4096x4096": (4.6, 4.6),
    "q4_0:4096x14336": (3.8, 3.9),
    "q6_k:4096x14336": (4.7, 4.8),
    "q8_0:4096x14336": (4.2, 4.4),
    "mxfp4:4096x4096": (5.1, 5.1),
    "bf16:4096x4096": (2.4, 2.9),
    "f16:4096x4096": (2.4, 2.9),
}
"""In the loop, and with what is before and after it; one step along a row is no loop."""


def test_products_of_one_row_stay_within_their_instructions_per_weight_on_sm90(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, Path(__file__).with_name("instructions.py"), *LIMITS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r"^(\S+) inside=(\S+) overall=(\S+) registers=(\d+) spilled=(\d+)", done.stdout, re.M)
    assert [name for name, *_ in found] == list(LIMITS)
    over = [line for line in found if any(float(n) > most for n, most in zip(line[1:3], LIMITS[line[0]]))]
    assert over == []
    assert [line for line in found if int(line[4])] == []
