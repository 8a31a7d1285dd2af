"""Chips that kernels are compiled for, one of every kind that the three backends accept, and what a block may use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from triton.backends.compiler import GPUTarget

from runtime_torch.facts import Chip, Facts
from runtime_torch.settings import Settings

KB = 1 << 10
GB = 1 << 30


@dataclass(frozen=True)
class Target:
    """What Triton compiles for, which backend sets the chip up, and the shared memory that one block may have."""

    gpu: GPUTarget
    backend: str
    chip: Chip
    shared_bytes: int
    options: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> Settings:
        """What the backend would choose for this chip."""
        module = importlib.import_module(f"runtime_{self.backend}.plugin")
        settings: Settings = module.settings_of(Facts(torch="2.13.0", chips=(self.chip,)), 0)
        return settings.with_options(dict(self.options))


def _nvidia(capability: int, name: str, memory_gb: int, units: int, shared_kb: int) -> Target:
    chip = Chip(name, memory_gb * GB, divmod(capability, 10), compute_units=units)
    return Target(GPUTarget("cuda", capability, 32), "cuda", chip, shared_kb * KB)


def _amd(architecture: str, name: str, memory_gb: int, units: int, shared_kb: int = 64) -> Target:
    chip = Chip(name, memory_gb * GB, architecture=architecture, compute_units=units)
    lanes = 64 if architecture.startswith("gfx9") else 32
    return Target(GPUTarget("hip", architecture, lanes), "rocm", chip, shared_kb * KB)


def _intel(name: str, architecture: str, memory_gb: int, units: int, shared_kb: int, *, has_fp64: bool) -> Target:
    """Triton's compiler for Intel is no part of this Triton: the settings of xpu are compiled for sm90 in its place."""
    chip = Chip(name, memory_gb * GB, architecture=architecture, compute_units=units, has_fp64=has_fp64)
    return Target(GPUTarget("cuda", 90, 32), "xpu", chip, shared_kb * KB)


_CHIPS = {
    "sm75": _nvidia(75, "T4", 16, 40, 64),
    "sm80": _nvidia(80, "A100", 80, 108, 163),
    "sm86": _nvidia(86, "RTX 3090", 24, 82, 99),
    "sm87": _nvidia(87, "Orin", 64, 16, 163),
    "sm89": _nvidia(89, "RTX 4090", 24, 128, 99),
    "sm90": _nvidia(90, "H200", 141, 132, 227),
    "sm100": _nvidia(100, "B200", 180, 148, 227),
    "sm103": _nvidia(103, "B300", 288, 160, 227),
    "sm120": _nvidia(120, "RTX 5090", 32, 170, 99),
    "sm121": _nvidia(121, "GB10", 128, 48, 99),
    "gfx908": _amd("gfx908", "MI100", 32, 120),
    "gfx90a": _amd("gfx90a", "MI250X", 64, 110),
    "gfx942": _amd("gfx942", "MI300X", 192, 304),
    "gfx950": _amd("gfx950", "MI355X", 288, 256, 160),
    "gfx1100": _amd("gfx1100", "RX 7900 XTX", 24, 96),
    "gfx1150": _amd("gfx1150", "Radeon 890M", 32, 16),
    "gfx1151": _amd("gfx1151", "Radeon 8060S", 96, 40),
    "gfx1200": _amd("gfx1200", "RX 9060 XT", 16, 32),
    "gfx1201": _amd("gfx1201", "RX 9070 XT", 16, 64),
    "xpu-dg2": _intel("Arc A770", "dg2-g10", 16, 32, 64, has_fp64=False),
    "xpu-bmg": _intel("Arc B580", "bmg-g21", 12, 20, 64, has_fp64=True),
    "xpu-pvc": _intel("Data Center GPU Max 1550", "pvc", 64, 128, 64, has_fp64=True),
}
TARGETS = _CHIPS | {f"{n}-f32": replace(_CHIPS[n], options={"precision": "f32"}) for n in ("sm86", "gfx942")}
"""Shared memory: CUDA C++ Programming Guide, technical specifications by compute capability; LDS by the manuals of CDNA 3
(64 KiB), CDNA 4 (160) and RDNA 3 and 4 (64 for a work group); shared local memory of Intel's is 64 KiB for a work group
of Alchemist and 128 of the others: all are held to 64, as what is compiled is a stand-in.
"""
