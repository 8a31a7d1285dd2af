"""Facts about this host: cores that may be used and why, the processor and its instruction sets."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

_ISA = {
    "avx512-vnni": ("avx512_vnni",),
    "avx512-bf16": ("avx512_bf16",),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "amx": ("amx_tile", "amx_int8"),
    "avx-vnni": ("avx_vnni",),
    "avx2": ("avx2", "fma", "f16c"),
    "sve": ("sve",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "dotprod": ("asimddp",),
    "neon": ("asimd",),
}
"""What kernels ask for -> the flags that Linux reports for it, all needed."""
_IMPLIED = {"avx512-vnni": ("avx512", "avx2"), "avx512": ("avx2",), "dotprod": ("neon",)}


@dataclass(frozen=True)
class Cores:
    """How many threads are worth starting, and which limit decided."""

    count: int
    reason: str


def usable_cores(root: Path = ROOT) -> Cores:
    """The least of affinity, physical cores and cgroup quota; a quota is rounded down, to one at least.

    A thread more than the quota pays for makes all of them wait, and two threads of one core share its arithmetic.
    """
    total = os.cpu_count() or 1
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(total))
    physical = _physical_cores(allowed, root)
    quota = cpu_quota(root)
    if quota is not None and quota < min(physical, len(allowed)):
        return Cores(max(1, int(quota)), f"cgroup quota {quota:.1f} of {total}")
    if physical < len(allowed):
        return Cores(physical, f"{physical} physical cores of {len(allowed)} logical")
    if len(allowed) < total:
        return Cores(len(allowed), f"affinity {len(allowed)} of {total}")
    return Cores(len(allowed), f"all {total} cores")


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores that the tightest cgroup above this process grants (v2 and v1), or None without a limit."""
    quotas = []
    for folder in _cgroup_folders(root):
        words = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us").strip(),
            _read(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def processor_name(root: Path = ROOT) -> str:
    """The model as the system calls it."""
    for key in ("model name", "Model", "Hardware"):
        value = _cpuinfo(key, root)
        if value:
            return value
    return platform.processor() or platform.machine() or "unknown processor"


def instruction_sets(root: Path = ROOT) -> tuple[str, ...]:
    """Extensions that kernels can use, the strongest first; without /proc/cpuinfo only the machine's own name."""
    flags = set((_cpuinfo("flags", root) or _cpuinfo("Features", root)).split())
    found = [name for name, needed in _ISA.items() if flags.issuperset(needed)]
    implied = {weaker for name in found for weaker in _IMPLIED.get(name, ())}
    return tuple(name for name in found if name not in implied) or (platform.machine() or "unknown",)


def _physical_cores(allowed: list[int], root: Path) -> int:
    siblings = set()
    for cpu in allowed:
        names = ("core_cpus_list", "thread_siblings_list")
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        group = next((text for text in (_read(topology / name).strip() for name in names) if text), "")
        siblings.add(group or f"cpu {cpu} alone")
    return len(siblings)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """Folders of the cgroups that limit the time of this process, from its own up to each hierarchy's root."""
    base = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            mounts = [base]
        elif "cpu" in names.split(","):
            mounts = [base / "cpu", base / names]
        else:
            continue
        for mount in mounts:
            # in a container the path may be one of the host, which is not visible: then the root is our own cgroup
            folder = mount / path.strip("/")
            while folder != mount:
                yield folder
                folder = folder.parent
            yield mount


def _cpuinfo(key: str, root: Path) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, separator, value = line.partition(":")
        if separator and name.strip() == key:
            return value.strip()
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:  # the file belongs to another version of the system: there is no such limit here
        return ""
