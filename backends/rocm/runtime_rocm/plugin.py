"""What is particular about AMD's chips: refusals, settings by architecture."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.backend import PluginRejected
from runtime_torch.facts import Chip, Facts, can_render, common_refusal, first_set, has_device_files
from runtime_torch.plugin import Kind, TorchBackend
from runtime_torch.settings import Settings, Tiles

NAME = "rocm"
INDEX = "https://download.pytorch.org/whl/rocm7.2"
MATRIX_CORES = ("gfx908", "gfx90a", "gfx942", "gfx950")
"""CDNA: matrix cores with bf16, waves of 64."""
WMMA = ("gfx11", "gfx12")
"""RDNA 3 and 4: bf16 in waves of 32."""
FP8 = ("gfx942", "gfx950", "gfx12")
JOIN = "add the user to the group that owns it (render)"
WIDEST = Settings(NAME, "cuda", capture=True, fp8=True)
KFD, DRI = Path("/dev/kfd"), Path("/dev/dri")
"""The device files of AMD's compute driver, and of Linux's graphics drivers: both are needed."""


def refusal(facts: Facts) -> tuple[str, str] | None:
    """(reason, remedy) why no AMD GPU can be used here, or None."""
    reason = common_refusal(facts, "rocm", INDEX)
    if reason is not None or facts.chips:
        return reason
    if has_device_files() and not KFD.exists():
        return "no AMD compute driver: /dev/kfd is absent", "load amdgpu, and give the container /dev/kfd and /dev/dri"
    if has_device_files() and not os.access(KFD, os.R_OK | os.W_OK):
        return f"{KFD} may not be opened by this user", JOIN
    if has_device_files() and not can_render(DRI):
        return f"no render node in {DRI} may be opened by this user", f"give the container /dev/dri; {JOIN}"
    hidden = first_set(hidden_by())
    if hidden:
        return f"no AMD GPU is visible: {hidden}", "unset it, or name a GPU that is there"
    return facts.problem or "no AMD GPU", "look at rocminfo"


def hidden_by() -> dict[str, str]:
    """Variables that hide GPUs, where they are set."""
    found = {
        "HIP_VISIBLE_DEVICES": os.environ.get("HIP_VISIBLE_DEVICES"),
        "ROCR_VISIBLE_DEVICES": os.environ.get("ROCR_VISIBLE_DEVICES"),
        "GPU_DEVICE_ORDINAL": os.environ.get("GPU_DEVICE_ORDINAL"),
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    return {name: value for name, value in found.items() if value is not None}


def settings_of(facts: Facts, index: int) -> Settings:
    """By architecture: chips without matrix instructions for bf16 are not served."""
    chip = facts.chips[index]
    if not chip.architecture.startswith((*MATRIX_CORES, *WMMA)):
        raise PluginRejected(
            f"{chip.name} is {chip.architecture or 'of unknown architecture'}; CDNA ({', '.join(MATRIX_CORES)}) or "
            "RDNA 3 and newer (gfx11, gfx12) is needed",
            remedy="use --backend opencl, which runs on older GPUs",
        )
    return Settings(NAME, "cuda", tiles=_tiles(chip), capture=True, fp8=chip.architecture.startswith(FP8))


def _tiles(chip: Chip) -> Tiles:
    """64 KiB of local memory on most chips: smaller tiles of attention; smaller still on RDNA, of fewer registers."""
    rows = 64 if chip.architecture.startswith(MATRIX_CORES) else 32
    return Tiles(programs=max(64, 4 * chip.compute_units), attention_rows=rows, tile_bytes=1 << 14)


plugin = TorchBackend(
    Kind(
        name=NAME,
        device_type="cuda",
        built_for=NAME,
        widest=WIDEST,
        hidden_by=hidden_by,
        driver_files=("/sys/module/amdgpu/version", "/dev/kfd"),
        refusal=refusal,
        settings=settings_of,
    )
)
