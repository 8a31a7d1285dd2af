"""Threads of the cpu backend follow affinity, physical cores and cgroup quota, and say which of them decided."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from runtime_cpu.host import Cores, instruction_sets, processor_name, usable_cores

V2 = {"proc/self/cgroup": "0::/user/app\n"}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A root folder with the given files, on a machine of 16 logical processors of which `allowed` may be used."""

    def make(files: Mapping[str, str], allowed: int = 16, threads_per_core: int = 1) -> Path:
        monkeypatch.setattr(os, "cpu_count", lambda: 16)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)), raising=False)
        for cpu in range(16):
            first = cpu // threads_per_core * threads_per_core
            path = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{first}-{first + threads_per_core - 1}\n")
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("files", "allowed", "threads_per_core", "expected"),
    [
        ({}, 16, 1, Cores(16, "all 16 cores")),
        ({}, 4, 1, Cores(4, "affinity 4 of 16")),
        ({}, 16, 2, Cores(8, "8 physical cores of 16 logical")),
        (V2 | {"sys/fs/cgroup/user/app/cpu.max": "200000 100000\n"}, 16, 1, Cores(2, "cgroup quota 2.0 of 16")),
        (V2 | {"sys/fs/cgroup/user/cpu.max": "370000 100000\n"}, 16, 1, Cores(3, "cgroup quota 3.7 of 16")),
        (V2 | {"sys/fs/cgroup/user/app/cpu.max": "50000 100000\n"}, 16, 1, Cores(1, "cgroup quota 0.5 of 16")),
        (V2 | {"sys/fs/cgroup/user/app/cpu.max": "max 100000\n"}, 16, 1, Cores(16, "all 16 cores")),
        (V2 | {"sys/fs/cgroup/user/app/cpu.max": "800000 100000\n"}, 4, 1, Cores(4, "affinity 4 of 16")),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/1f\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            16,
            2,
            Cores(3, "cgroup quota 3.0 of 16"),
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
            1,
            Cores(16, "all 16 cores"),
        ),
    ],
)
def test_the_tightest_limit_decides(host, files, allowed, threads_per_core, expected) -> None:
    assert usable_cores(host(files, allowed, threads_per_core)) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse2 avx2 fma f16c", ("avx2",)),
        ("avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16", ("avx512-vnni", "avx512-bf16")),
        ("avx2 fma f16c avx_vnni", ("avx-vnni", "avx2")),
    ],
)
def test_instruction_sets_come_from_the_flags_strongest_first(host, flags: str, expected: tuple[str, ...]) -> None:
    root = host({"proc/cpuinfo": f"processor\t: 0\nmodel name\t: A Processor\nflags\t\t: {flags}\n"})
    assert instruction_sets(root) == expected
    assert processor_name(root) == "A Processor"


def test_without_proc_the_machine_still_has_a_name(host) -> None:
    root = host({})
    assert instruction_sets(root)
    assert processor_name(root)
