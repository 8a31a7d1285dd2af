"""Runs a real kernel on every device that torch finds, and says in one line why one cannot be used."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from runtime.backend import DeviceInfo, OutOfMemory, PluginRejected, RuntimeFault
from runtime_torch.accelerator import Accelerator
from runtime_torch.errors import first_line, translated
from runtime_torch.facts import Chip, Facts
from runtime_torch.kernels import linear_few as kernels
from runtime_torch.products_few import FewTiles
from runtime_torch.repack import repack
from runtime_torch.settings import Settings

NUM_COLUMNS = 4096
MEASURED_BYTES = 256 << 20
"""Weights of the measured product on a chip: more than its caches hold."""
NUM_RUNS = 8
REMEDIES = {
    "Failed to find C compiler": "install a C compiler (gcc): Triton builds a launcher for each kernel with it",
    "gcc": "install the headers of this Python (python3-dev): Triton builds its launcher with them",
    "Python.h": "install the headers of this Python (python3-dev): Triton builds its launcher with them",
    "ld.lld": "install ROCm's linker (lld), or set TRITON_HIP_LLD_PATH",
    "ptxas": "set TRITON_PTXAS_PATH to a ptxas that knows this chip, or install a newer triton",
    "no kernel image": "install a torch that is built for this chip",
}
"""What is missing -> what to do about it."""
NEWER_DRIVER = "install a newer driver, or a torch that is built for this one"


def probe(facts: Facts, settings_of: Callable[[int], Settings]) -> list[DeviceInfo]:
    """The devices whose answer is right; raises PluginRejected with every reason when there is none."""
    found, reasons, remedies = [], [], []
    for index, chip in enumerate(facts.chips):
        try:
            settings = settings_of(index)
            gigabytes_per_s = measure(settings, index)
        except RuntimeFault as error:
            reasons.append(f"{chip.name}: {error.message}")
            remedies.append(remedy_for(error))
            continue
        found.append(describe(facts, chip, index, settings, round(gigabytes_per_s, 3)))
    if not found:
        raise PluginRejected("; ".join(reasons), remedy=remedies[0])
    return found


def remedy_for(error: RuntimeFault) -> str:
    """By what the compiler or the driver said, where that is known to have nothing to do with the driver's age."""
    if isinstance(error, OutOfMemory):
        return "free some of the device's memory: another program holds it"
    known = next((remedy for sign, remedy in REMEDIES.items() if sign in error.message), None)
    return known or error.remedy or NEWER_DRIVER


def describe(facts: Facts, chip: Chip, index: int, settings: Settings, score: float) -> DeviceInfo:
    """Facts about a device that was found working."""
    details = {
        "torch": f"{facts.torch} ({facts.built_for})",
        "triton": facts.triton,
        "chip": chip.architecture or "compute capability {}.{}".format(*chip.capability),
        "compute_units": str(chip.compute_units),
        "products": settings.precision,
        "capture": "yes" if settings.capture else "no",
        **chip.details,
    }
    return DeviceInfo(index, chip.name, chip.memory_bytes, score, facts.driver, chip.uuid, details)


def measure(settings: Settings, index: int) -> float:
    """GB/s of q8_0 weights in a checked matrix-vector product; raises PluginRejected for a wrong answer."""
    try:
        return _measure(settings, index)
    except RuntimeFault:
        raise
    except Exception as error:
        raise PluginRejected(
            f"its first kernel cannot be built or run: {type(error).__name__}: {first_line(error)}", remedy=NEWER_DRIVER
        ) from error


def _measure(settings: Settings, index: int) -> float:
    accelerator = Accelerator(settings.device_type, index)
    num_rows = (MEASURED_BYTES if accelerator.is_async else 1 << 20) // NUM_COLUMNS
    with translated("the first kernel"), accelerator.use():
        # every block alike: scale 0.5, codes 1 .. 32; x of small integers: the sums are exact in any order
        codes = torch.arange(1, 33, dtype=torch.uint8)
        block = torch.cat([torch.tensor([0.5], dtype=torch.float16).view(torch.uint8), codes])
        raw = block.to(accelerator.device).repeat(num_rows * NUM_COLUMNS // 32)
        planes = repack("q8_0", raw, num_rows, NUM_COLUMNS)
        x = (torch.arange(NUM_COLUMNS) % 5 - 2).float()
        expected = float(0.5 * (codes.float().repeat(NUM_COLUMNS // 32) * x).sum())
        x = x.to(accelerator.device)
        y = torch.zeros(num_rows, device=accelerator.device)
        lo, scale = planes["lo"].view(torch.int32), planes["scale"]
        flags = {"LO_BITS": 8, "HI_BITS": 0, "OFFSET": 0, "GROUPS": 1, "SCALE": 0, "MINIMUM": False, "CODEBOOK": False}
        tiles = FewTiles(settings.tiles.few_rows, min(128, settings.tiles.few_pieces), 4)
        constants = {**flags, "HAS_BIAS": False, **tiles.constants(NUM_COLUMNS, 1, num_rows)}
        bound: Any = kernels.linear_few[(-(-num_rows // tiles.rows),)]

        def run() -> None:
            bound(x, lo, lo, scale, scale, scale, scale, x, y, y, num_rows, **constants)

        run()
        accelerator.synchronize()
        wrong = int((y != expected).sum())
        started = time.perf_counter()
        for _ in range(NUM_RUNS if accelerator.is_async else 0):
            run()
        accelerator.synchronize()
        seconds = time.perf_counter() - started
    if wrong:
        raise PluginRejected(f"{wrong} of {num_rows} rows of its first matrix product are wrong", remedy=NEWER_DRIVER)
    return NUM_RUNS * raw.numel() / max(seconds, 1e-9) / 1e9 if accelerator.is_async else 0.0
