"""`runtime backends` and `runtime doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.cli.machine import describe_machine

pytestmark = pytest.mark.usefixtures("plugins")


def row_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{name} "))


def test_backends_shows_every_plugin_with_its_state_and_reason(command: Callable) -> None:
    result = command("backends")
    assert result.code == 0
    assert row_of(result.out, "tiny").split()[:6] == ["tiny", "ok", "tiny-rt", "2.3", "tiny", "chip"]
    assert "8.00 GB" in row_of(result.out, "tiny")
    assert "threads 1 (as always)" in result.out
    assert row_of(result.out, "absent").split()[1] == "refused"
    assert row_of(result.out, "absent").endswith("probe: no chip on the bus")
    assert row_of(result.out, "broken").endswith("import: No module named 'libacme_that_is_missing'")
    assert "did you mean 'runtime_probe'?" in " ".join(result.out.split())
    assert "crashed with SIGABRT" in row_of(result.out, "crashing")


def test_backends_as_json_is_one_object_per_backend(command: Callable) -> None:
    events = {e["name"]: e for e in command("backends", "--json").events}
    assert events["tiny"]["state"] == "ok"
    assert events["tiny"]["devices"][0]["driver"] == "4.1.7"
    assert events["misspelt"]["stage"] == "validate"
    assert events["absent"]["remedy"] == "plug one in"


def test_a_manifest_is_printed_as_json_that_plan_reads(command: Callable) -> None:
    result = command("backends", "tiny", "--manifest")
    assert result.code == 0
    assert json.loads(result.out)["backend"] == "tiny"
    refused = command("backends", "--manifest")
    assert refused.code == 2
    assert "needs the name of a backend" in refused.err


def test_doctor_tells_machine_stages_reasons_and_remedies(command: Callable) -> None:
    result = command("doctor", "-v")
    assert result.code == 0
    for fact in ("python ", "cores ", "memory ", "packages ", "numpy "):
        assert fact in result.out
    assert row_of(result.out, "tiny").split()[1:6] == ["ok", "tiny-rt", "2.3", "api", "1"]
    assert "-> plug one in" in result.out
    assert "-> install what it needs, or remove it: pip uninstall broken-rt" in result.out
    assert "ModuleNotFoundError" in result.out


def test_doctor_of_a_refused_backend_exits_with_2(command: Callable) -> None:
    result = command("doctor", "absent")
    assert result.code == 2
    assert "backend 'absent' cannot be used here" in result.out


def test_doctor_of_a_rejected_backend_exits_with_2_and_keeps_tracebacks_for_verbose(command: Callable) -> None:
    result = command("doctor", "broken", "--json")
    assert result.code == 2
    machine, backend = result.events
    assert machine["event"] == "machine"
    assert machine["num_usable_cores"] >= 1
    assert backend["state"] == "rejected"
    assert "Traceback" in backend["detail"]
    assert "Traceback" not in command("doctor", "broken").out


def test_an_unknown_backend_is_told_with_the_nearest_name(command: Callable) -> None:
    for verb in ("doctor", "backends"):
        result = command(verb, "tinny")
        assert result.code == 2
        assert result.out == ""
        assert "there is no backend 'tinny'; did you mean 'tiny'?" in result.err


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_quota_of_an_outer_control_group_limits_cores_and_memory(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/kubepods/pod1\n")
    write(tmp_path, "proc/meminfo", "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   12000000 kB\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/pod1/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/cpu.max", "50000 100000\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/pod1/memory.max", "4000000000\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/pod1/memory.current", "1000000000\n")
    machine = describe_machine(tmp_path)
    assert (machine.num_usable_cores, machine.cores_reason) == (1, "cgroup quota 0.5")
    assert (machine.memory_bytes, machine.available_bytes) == (4_000_000_000, 3_000_000_000)
    assert machine.memory_reason == "cgroup limit"


def test_control_groups_of_version_1_are_read_too(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "3:cpu,cpuacct:/box\n2:memory:/box\n")
    write(tmp_path, "proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\n")
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
    write(tmp_path, "sys/fs/cgroup/memory/box/memory.limit_in_bytes", "9223372036854771712\n")
    machine = describe_machine(tmp_path)
    assert "quota" not in machine.cores_reason
    assert machine.memory_bytes == 16_384_000_000
    assert machine.memory_reason == "all of the machine's"
