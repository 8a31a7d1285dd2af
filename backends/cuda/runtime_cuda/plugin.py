"""What is particular about NVIDIA's chips: refusals, settings by compute capability, the allocator."""

from __future__ import annotations

import os

from runtime.backend import PluginRejected
from runtime_torch.facts import Chip, Facts, common_refusal, first_set, installed_version, version_of
from runtime_torch.plugin import Kind, TorchBackend
from runtime_torch.settings import Settings, Tiles, in_float32

NAME = "cuda"
INDEX = "https://download.pytorch.org/whl/cu130"
MIN_CAPABILITY = (7, 5)
"""Turing: the oldest chips that wheels of current torch are built for."""
BF16_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)
LARGE = ((8, 0), (8, 7))
"""Of Ampere, the chips with 163 KiB of shared memory for a block; the others have 99. Hopper and B200 have 227."""
ALLOC_CONF_SINCE = (2, 11)
"""torch whose PYTORCH_ALLOC_CONF holds for CUDA."""
WIDEST = Settings(NAME, "cuda", capture=True, fp8=True)
CONTAINER = "give the container its GPUs (--gpus all)"
REMEDIES = {
    "Error 802": "start nvidia-fabricmanager: the links between the GPUs are not set up yet",
    "Error 803": "the driver was replaced while it was loaded: reboot, or load the new one",
    "Error 804": "take CUDA's compatibility libraries out of LD_LIBRARY_PATH, or install a newer driver",
}
"""cudaGetDeviceCount's answers (CUDA runtime API, cudaError) that have a cause of their own."""


def refusal(facts: Facts) -> tuple[str, str] | None:
    """(reason, remedy) why no NVIDIA GPU can be used here, or None."""
    reason = common_refusal(facts, "cuda", INDEX)
    if reason is not None or facts.chips:
        return reason
    if "no NVIDIA driver" in facts.problem or (not facts.driver and not facts.problem):
        if facts.driver:
            return f"NVIDIA driver {facts.driver} is loaded, but its libraries are not here", CONTAINER
        return "no NVIDIA driver is loaded", f"install the driver; {CONTAINER}"
    if "too old" in facts.problem:
        return f"NVIDIA driver {facts.driver or 'of unknown version'} is too old for torch's {facts.built_for}", (
            "install a newer driver, or a torch for an older CUDA"
        )
    hidden = first_set({n: v for n, v in hidden_by().items() if v != "all"})
    if hidden and (not facts.problem or "No CUDA GPUs" in facts.problem):
        return f"no NVIDIA GPU is visible: {hidden}", "unset it, or name a GPU that is there"
    remedy = next((remedy for sign, remedy in REMEDIES.items() if sign in facts.problem), "look at nvidia-smi")
    return facts.problem or "no NVIDIA GPU", remedy


def hidden_by() -> dict[str, str]:
    """Variables that hide GPUs, where they are set."""
    found = {
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "NVIDIA_VISIBLE_DEVICES": os.environ.get("NVIDIA_VISIBLE_DEVICES"),
    }
    return {name: value for name, value in found.items() if value is not None}


def settings_of(facts: Facts, index: int) -> Settings:
    """By compute capability. Turing has no bf16: its products are those of float32."""
    chip = facts.chips[index]
    if chip.capability < MIN_CAPABILITY:
        have, need = (".".join(map(str, c)) for c in (chip.capability, MIN_CAPABILITY))
        raise PluginRejected(
            f"{chip.name} has compute capability {have}; {need} or newer is needed", remedy="use a newer GPU"
        )
    has_bf16 = chip.capability >= BF16_CAPABILITY
    return Settings(
        NAME,
        "cuda",
        precision="half" if has_bf16 else "f32",
        tiles=_tiles(chip) if has_bf16 else in_float32(_tiles(chip)),
        capture=True,
        fp8=chip.capability >= FP8_CAPABILITY,
    )


def _tiles(chip: Chip) -> Tiles:
    """Enough programs for every multiprocessor to hold four; larger tiles where shared memory is large."""
    is_large = chip.capability in LARGE or (9, 0) <= chip.capability < (12, 0)
    is_hopper = (9, 0) <= chip.capability < (12, 0)
    return Tiles(
        programs=max(64, 4 * chip.compute_units),
        many_tokens=128 if is_large else 64,
        product_tokens=128 if is_hopper else 64,
        product_tile=(1 << 15) if is_large else (1 << 14),
        expert_sums=1 << (15 if is_large and chip.capability >= (9, 0) else 14 if is_large else 13),
        attention_rows=128 if is_large else 64,
        attention_keys=128 if is_hopper else 64,
        # two steps of keys and values, of which one is multiplied; older chips have no loads beside their products
        attention_stages=5 if is_large else 0,
        tile_bytes=(1 << 16) if is_hopper else (1 << 15) if is_large else (1 << 14),
    )


def prepare() -> None:
    """Segments that grow leave no holes when weights of many sizes are loaded; a user's own setting stays.

    The variable that is not named after CUDA is unknown to torch 2.8, and without effect on this in 2.9
    (github.com/pytorch/pytorch, issue 183387).
    """
    if "PYTORCH_CUDA_ALLOC_CONF" in os.environ or "PYTORCH_ALLOC_CONF" in os.environ:
        return
    if version_of(installed_version("torch")) < ALLOC_CONF_SINCE:
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    else:
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


plugin = TorchBackend(
    Kind(
        name=NAME,
        device_type="cuda",
        built_for=NAME,
        widest=WIDEST,
        hidden_by=hidden_by,
        driver_files=("/sys/module/nvidia/version", "/dev/nvidiactl"),
        refusal=refusal,
        settings=settings_of,
        prepare=prepare,
    )
)
