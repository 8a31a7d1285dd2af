"""Facts about the machine that decide what a model can do here: cores, memory, versions."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DEPENDENCIES = ("numpy", "pluggy", "gguf", "safetensors", "tokenizers", "jinja2")
NO_LIMIT_BYTES = 1 << 60
"""Control groups of version 1 write a number near 2**63 where there is no limit."""


@dataclass(frozen=True)
class Machine:
    """What this process may use, and why not more."""

    python: str
    system: str
    runtime: str
    num_cores: int
    num_usable_cores: int
    cores_reason: str
    memory_bytes: int | None
    available_bytes: int | None
    memory_reason: str
    packages: dict[str, str | None]


def describe_machine(root: Path = Path("/")) -> Machine:
    """Look at this machine; `root` is where /proc and /sys are found."""
    num_cores = os.cpu_count() or 1
    usable, cores_reason = _usable_cores(root, num_cores)
    total, available, memory_reason = _memory(root)
    return Machine(
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        runtime=_version("hal-runtime") or "not installed as a package",
        num_cores=num_cores,
        num_usable_cores=usable,
        cores_reason=cores_reason,
        memory_bytes=total,
        available_bytes=available,
        memory_reason=memory_reason,
        packages={name: _version(name) for name in DEPENDENCIES},
    )


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _usable_cores(root: Path, num_cores: int) -> tuple[int, str]:
    """Whole cores that the process may use: a quota is rounded down, as threads beyond it would only be stalled."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else num_cores
    usable, reason = allowed, "affinity" if allowed < num_cores else "all of them"
    quota = _cpu_quota(root)
    if quota is not None and quota < usable:
        usable, reason = max(int(quota), 1), f"cgroup quota {quota:.3g}"
    return usable, reason


def _cpu_quota(root: Path) -> float | None:
    """The smallest CPU quota of the control groups that hold this process, in cores."""
    quotas = []
    for group in _groups(root, "cpu"):
        maximum = _words(group / "cpu.max")
        if len(maximum) == 2 and maximum[0] != "max":
            quotas.append(int(maximum[0]) / int(maximum[1]))
        quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            quotas.append(int(quota[0]) / int(period[0]))
    return min(quotas, default=None)


def _memory(root: Path) -> tuple[int | None, int | None, str]:
    """(total, available, what limits it) in bytes."""
    fields = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    total, available = fields.get("MemTotal"), fields.get("MemAvailable")
    reason = "all of the machine's"
    for group in _groups(root, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _words(group / limit_name), _words(group / used_name)
            if not limit or not limit[0].isdigit() or int(limit[0]) >= (total or NO_LIMIT_BYTES):
                continue
            total, reason = int(limit[0]), "cgroup limit"
            if used and available is not None:
                available = min(available, max(total - int(used[0]), 0))
    return total, available, reason


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups of this process, innermost first, for both versions."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mount / controller if controllers else mount
        group = base / path.lstrip("/")
        while group != base and base in group.parents:
            yield group
            group = group.parent
        yield base


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # the system has no such file: there is no such limit
        return ""
