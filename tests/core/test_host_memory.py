"""Memory that may be used is the least that any control group above the process allows and leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from runtime.backend.host import within_groups

V2 = {"proc/self/cgroup": "0::/user/app\n"}
V1 = {"proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/docker/1f\n"}


def group(folder: str, limit: object, used: int) -> dict[str, str]:
    return {f"sys/fs/cgroup{folder}/memory.max": f"{limit}\n", f"sys/fs/cgroup{folder}/memory.current": f"{used}\n"}


def group_v1(folder: str, limit: int, used: int) -> dict[str, str]:
    base = f"sys/fs/cgroup/memory{folder}/memory"
    return {f"{base}.limit_in_bytes": f"{limit}\n", f"{base}.usage_in_bytes": f"{used}\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (600, 1000)),
        (V2, (600, 1000)),
        (V2 | group("/user/app", "max", 90), (600, 1000)),
        (V2 | group("/user/app", 500, 100), (400, 500)),
        (V2 | group("/user", 500, 200), (300, 500)),
        (V2 | group("", 500, 200), (300, 500)),
        (V2 | group("/user", 800, 750) | group("/user/app", 500, 100), (50, 500)),
        (V2 | group("/user/app", 100, 120), (0, 100)),
        (V2 | group("/other", 100, 50), (600, 1000)),
        (V1 | group_v1("/docker/1f", 400, 100), (300, 400)),
        (V1 | group_v1("", 400, 100), (300, 400)),
        (V1 | group_v1("/docker", 1 << 62, 100), (600, 1000)),
    ],
)
def test_the_tightest_group_decides(files: Mapping[str, str], expected: tuple[int, int], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert within_groups(600, 1000, tmp_path) == expected
