"""What torch says about itself and its devices, as plain data that can be faked."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Chip:
    """One device as torch describes it. `capability` is (major, minor) of NVIDIA, `architecture` "gfx942" or "pvc"."""

    name: str
    memory_bytes: int
    capability: tuple[int, int] = (0, 0)
    architecture: str = ""
    uuid: str = ""
    compute_units: int = 0
    has_fp64: bool = True
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """An environment.

    torch      version, "" where it is not installed
    broken     why torch, although installed, cannot be imported
    built_for  "cuda 13.0", "rocm 7.2", "xpu", or "" for a build for processors alone
    triton     version, "" where it is absent
    ipex       version of intel-extension-for-pytorch, "" where it is absent
    driver     version of the driver, "" where unknown
    problem    what torch says when asked for devices and there is none
    """

    torch: str = ""
    broken: str = ""
    built_for: str = ""
    triton: str = ""
    ipex: str = ""
    driver: str = ""
    problem: str = ""
    chips: tuple[Chip, ...] = ()


MIN_TORCH = (2, 8)
"""The first with torch.mm(out_dtype=...) and a stock torch.xpu that needs no extension."""


def version_of(text: str) -> tuple[int, int]:
    """Major and minor number; (0, 0) for what is none."""
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return 0, 0


def common_refusal(facts: Facts, wanted: str, index: str) -> tuple[str, str] | None:
    """What no torch-based backend can do without: (reason, remedy). `wanted` begins `built_for`; `index` is pip's."""
    install = f"pip install torch --index-url {index}"
    if facts.broken:
        return f"torch cannot be loaded: {facts.broken}", f"reinstall it: {install}"
    if not facts.torch:
        return "torch is not installed", install
    if version_of(facts.torch) < MIN_TORCH:
        needed = ".".join(str(n) for n in MIN_TORCH)
        return f"torch {facts.torch} is too old; {needed} or newer is needed", f"{install} --upgrade"
    if not facts.built_for:
        return f"torch {facts.torch} is a build for processors alone", install
    if not facts.built_for.startswith(wanted):
        return f"torch {facts.torch} is built for {facts.built_for}, not for {wanted}", install
    if not facts.triton:
        return f"triton is not installed beside torch {facts.torch}", "pip install triton, or reinstall torch"
    if not facts.chips:
        return facts.problem or "no device", ""
    return None


def gather_facts(device_type: str) -> Facts:
    """Ask the torch of this environment about devices of `device_type` ("cuda", "xpu")."""
    if importlib.util.find_spec("torch") is None:
        return Facts()
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # a library of the driver is missing, or of another version
        return Facts(broken=str(error).splitlines()[0] if str(error) else type(error).__name__)
    module = getattr(torch, device_type, None)
    problem, chips = "", []
    if module is None:
        problem = f"torch {torch.__version__} knows no {device_type} devices"
    else:
        try:
            if module.is_available():
                chips = [_chip(module.get_device_properties(i), device_type) for i in range(module.device_count())]
            else:
                module.init()  # says why there is none
        except (RuntimeError, AssertionError) as error:
            problem = str(error).splitlines()[0]
    return Facts(
        torch=str(torch.__version__),
        built_for=_built_for(torch, device_type),
        triton=_triton_version(),
        ipex=_installed_version("intel-extension-for-pytorch"),
        driver=_driver(torch, device_type),
        problem=problem,
        chips=tuple(chips),
    )


def _built_for(torch: Any, device_type: str) -> str:
    if getattr(torch.version, "hip", None):
        return f"rocm {torch.version.hip}"
    if getattr(torch.version, "cuda", None):
        return f"cuda {torch.version.cuda}"
    is_for_xpu = getattr(torch.version, "xpu", None) or (device_type == "xpu" and torch.xpu._is_compiled())
    return "xpu" if is_for_xpu else ""


def _chip(properties: Any, device_type: str) -> Chip:
    architecture = str(getattr(properties, "gcnArchName", "") or getattr(properties, "architecture", ""))
    units = getattr(properties, "multi_processor_count", 0) or getattr(properties, "gpu_subslice_count", 0)
    return Chip(
        name=str(properties.name),
        memory_bytes=int(properties.total_memory),
        capability=(int(getattr(properties, "major", 0)), int(getattr(properties, "minor", 0))),
        architecture=architecture.split(":")[0],
        uuid=str(getattr(properties, "uuid", "")),
        compute_units=int(units),
        has_fp64=bool(getattr(properties, "has_fp64", True)),
    )


def _triton_version() -> str:
    if importlib.util.find_spec("triton") is None:
        return ""
    return next((v for v in map(_installed_version, ("triton", "pytorch-triton-xpu", "triton-xpu")) if v), "unknown")


def _installed_version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _driver(torch: Any, device_type: str) -> str:
    """NVIDIA's and AMD's kernel modules say it in files; Intel's is a property of the device."""
    from pathlib import Path

    if device_type == "xpu":
        try:
            return str(getattr(torch.xpu.get_device_properties(0), "driver_version", ""))
        except (RuntimeError, AssertionError):  # no device
            return ""
    for path in ("/sys/module/nvidia/version", "/sys/module/amdgpu/version"):
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except OSError:
            continue
    return ""
