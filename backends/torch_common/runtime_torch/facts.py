"""What torch says about itself and its devices, as plain data that can be faked."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
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


TRITONS = ("triton", "pytorch-triton-rocm", "triton-rocm", "pytorch-triton-xpu", "triton-xpu", "triton-windows")
"""Distributions that hold the package triton: every kind of torch depends on its own."""
MIN_TORCH = (2, 8)
"""The first with torch.mm(out_dtype=...) and a stock torch.xpu that needs no extension."""


DRIVER_LIBRARIES = {
    "libze_loader": "install Level Zero (libze1 and libze-intel-gpu1, or level-zero and intel-level-zero-gpu)",
    "libcuda.so": "install NVIDIA's driver, and give the container its GPUs (--gpus all)",
    "libdrm": "install libdrm and libdrm-amdgpu",
}
"""Libraries that no wheel holds, and how to come by them."""


def first_set(hidden_by: Mapping[str, str]) -> str:
    """NAME='value' of the first variable that is set, or ""."""
    return next((f"{name}={value!r}" for name, value in hidden_by.items()), "")


def has_device_files() -> bool:
    """Whether drivers show themselves in /dev: not on Windows, nor in its subsystem for Linux."""
    return sys.platform == "linux" and not Path("/dev/dxg").exists()


def can_render(folder: Path) -> bool:
    """Whether this user may open one of the render nodes in /dev/dri."""
    return any(os.access(node, os.R_OK | os.W_OK) for node in folder.glob("renderD*"))


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
    # pip leaves a torch that is there where it is, whatever it was built for
    again = f"pip install --force-reinstall torch --index-url {index}"
    if facts.broken:
        missing = next((name for name in DRIVER_LIBRARIES if name in facts.broken), "")
        remedy = DRIVER_LIBRARIES[missing] if missing else f"reinstall it: {again}"
        return f"torch cannot be loaded: {facts.broken}", remedy
    if not facts.torch:
        return "torch is not installed", install
    if version_of(facts.torch) < MIN_TORCH:
        needed = ".".join(str(n) for n in MIN_TORCH)
        return f"torch {facts.torch} is too old; {needed} or newer is needed", f"{install} --upgrade"
    if not facts.built_for:
        return f"torch {facts.torch} is a build for processors alone", again
    if not facts.built_for.startswith(wanted):
        return f"torch {facts.torch} is built for {facts.built_for}, not for {wanted}", again
    if not facts.triton:
        return f"triton is not installed beside torch {facts.torch}", f"it comes with torch: {again}"
    return None


def gather_facts(device_type: str, wanted: str) -> Facts:
    """Ask the torch of this environment about devices of `device_type` ("cuda", "xpu").

    A torch that is not `wanted` ("cuda", "rocm", "xpu"), or too old, is not imported: that takes seconds.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return Facts()
    stated = read_version_file(Path(spec.origin).with_name("version.py"))
    facts = Facts(
        torch=stated.get("__version__", ""),
        built_for=built_for(stated),
        triton=_triton_version(),
        ipex=installed_version("intel-extension-for-pytorch"),
    )
    if not facts.built_for.startswith(wanted) or version_of(facts.torch) < MIN_TORCH or not facts.triton:
        return facts
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # a library of the driver is missing, or of another version
        return replace(facts, broken=str(error).splitlines()[0] if str(error) else type(error).__name__)
    module = getattr(torch, device_type)
    problem, chips = "", []
    try:
        if module.is_available():
            chips = [_chip(module.get_device_properties(i)) for i in range(module.device_count())]
        else:
            module.init()  # says why there is none
    except (RuntimeError, AssertionError) as error:
        problem = str(error).splitlines()[0]
    return replace(facts, driver=_driver(module, device_type, bool(chips)), problem=problem, chips=tuple(chips))


_STATEMENT = re.compile(r"^(\w+)\s*(?::[^=]+)?=\s*['\"]([^'\"]*)['\"]", re.MULTILINE)


def read_version_file(path: Path) -> dict[str, str]:
    """The strings that torch/version.py assigns: __version__, and cuda, hip, xpu where the build is for one."""
    try:
        return dict(_STATEMENT.findall(path.read_text(encoding="utf-8")))
    except OSError:  # another layout: torch is taken as of no version, and refused as such
        return {}


def built_for(stated: Mapping[str, str]) -> str:
    """See `Facts`, from what torch/version.py states."""
    if stated.get("hip"):
        return f"rocm {stated['hip']}"
    if stated.get("cuda"):
        return f"cuda {stated['cuda']}"
    return "xpu" if stated.get("xpu") or "+xpu" in stated.get("__version__", "") else ""


def _chip(properties: Any) -> Chip:
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
    return next((v for v in map(installed_version, TRITONS) if v), "unknown")


def installed_version(distribution: str) -> str:
    """Version of an installed distribution, "" where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _driver(module: Any, device_type: str, has_chips: bool) -> str:
    """NVIDIA's and AMD's kernel modules say it in files; Intel's is a property of the device."""
    if device_type == "xpu":
        return str(getattr(module.get_device_properties(0), "driver_version", "")) if has_chips else ""
    for path in ("/sys/module/nvidia/version", "/sys/module/amdgpu/version"):
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except OSError:
            continue
    return ""
