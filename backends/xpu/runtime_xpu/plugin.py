"""What is particular about Intel's chips: refusals, settings by family, and the extension for torch."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from runtime.backend import PluginRejected
from runtime_torch.facts import (
    MIN_TORCH,
    Chip,
    Facts,
    can_render,
    common_refusal,
    first_set,
    has_device_files,
    version_of,
)
from runtime_torch.plugin import Kind, TorchBackend
from runtime_torch.settings import Settings, Tiles

NAME = "xpu"
INDEX = "https://download.pytorch.org/whl/xpu"
MIN_MEMORY = 2 << 30
"""Bytes; below it a device is a display's, with what the system lends it."""
WIDEST = Settings(NAME, "xpu", capture=True)
DRI = Path("/dev/dri")
"""The device files of Linux's graphics drivers."""
CAPTURE_SINCE = (2, 13)
"""torch.xpu.XPUGraph."""


def refusal(facts: Facts) -> tuple[str, str] | None:
    """(reason, remedy) why no Intel GPU can be used here, or None."""
    reason = common_refusal(facts, "xpu", INDEX)
    if facts.built_for != "xpu" and not facts.broken and version_of(facts.torch) >= MIN_TORCH:
        return f"torch {facts.torch} has no XPU support", f"pip install --force-reinstall torch --index-url {INDEX}"
    if reason is not None or facts.chips:
        return reason
    if has_device_files() and not any(DRI.glob("renderD*")):
        return "no graphics driver: /dev/dri has no render node", "load i915 or xe, and give the container /dev/dri"
    if has_device_files() and not can_render(DRI):
        return f"no render node in {DRI} may be opened by this user", "add the user to the group that owns it (render)"
    hidden = first_set(hidden_by())
    if hidden:
        return f"no Intel GPU is visible: {hidden}", "unset it, or name a GPU that is there"
    return "no Intel GPU answers (Level Zero)", "install libze-intel-gpu1 (intel-level-zero-gpu) and look at sycl-ls"


def hidden_by() -> dict[str, str]:
    """Variables that hide GPUs, where they are set."""
    found = {
        "ZE_AFFINITY_MASK": os.environ.get("ZE_AFFINITY_MASK"),
        "ONEAPI_DEVICE_SELECTOR": os.environ.get("ONEAPI_DEVICE_SELECTOR"),
    }
    return {name: value for name, value in found.items() if value is not None}


def settings_of(facts: Facts, index: int) -> Settings:
    """Chips with XMX engines multiply in bf16. Graphs are captured where torch has them."""
    chip = facts.chips[index]
    if chip.memory_bytes < MIN_MEMORY:
        raise PluginRejected(
            f"{chip.name} has {chip.memory_bytes} bytes of memory; {MIN_MEMORY} are needed", remedy="use --backend cpu"
        )
    return Settings(NAME, "xpu", tiles=_tiles(chip), capture=version_of(facts.torch) >= CAPTURE_SINCE)


def _tiles(chip: Chip) -> Tiles:
    """Eight threads per engine hide latency; tiles stay small, as registers are, and within 64 KiB of local memory."""
    return Tiles(
        programs=max(64, 2 * chip.compute_units),
        few_rows=4,
        many_rows=32,
        many_units=4,
        product_rows=32,
        product_units=8,
        product_tile=1 << 12,
        expert_sums=1 << 12,
        attention_rows=32,
        tile_bytes=1 << 14,
    )


def extension_matches(facts: Facts) -> bool:
    """Whether the environment holds intel-extension-for-pytorch of torch's own version: it ended at 2.8."""
    return bool(facts.ipex) and version_of(facts.ipex) == version_of(facts.torch)


def prepare() -> None:
    """Import the extension where a matching pair is installed: it has faster kernels for torch's own operations."""
    from runtime_torch.facts import installed_version

    pair = Facts(torch=installed_version("torch"), ipex=installed_version("intel-extension-for-pytorch"))
    if extension_matches(pair):
        importlib.import_module("intel_extension_for_pytorch")


plugin = TorchBackend(
    Kind(
        name=NAME,
        device_type="xpu",
        built_for=NAME,
        widest=WIDEST,
        hidden_by=hidden_by,
        driver_files=("/sys/module/xe/version", "/sys/module/i915/version", "/dev/dri"),
        refusal=refusal,
        settings=settings_of,
        prepare=prepare,
    )
)
