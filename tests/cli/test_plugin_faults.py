"""Four plugins at once: one cannot be imported, one misspells a hook, one hangs in its probe, and one works."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from installed import Site
from plugin_sources import plugin_source

FAULTS = {
    "broken": ("rejected", "import", "libbroken.so.4: cannot open shared object file"),
    "hanging": ("refused", "probe", "no answer within 4 s"),
    "misspelt": ("rejected", "validate", "unknown hook runtime_prob; did you mean 'runtime_probe'?"),
}
"""State, stage and reason."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = Site(tmp_path_factory.mktemp("four"))
    made.write("broken", 'raise OSError("libbroken.so.4: cannot open shared object file")')
    made.write("misspelt", plugin_source("misspelt", probe="runtime_prob"))
    made.write("hanging", plugin_source("hanging", before="import time; time.sleep(600)"))
    made.write("good", plugin_source("good"))
    return made


@pytest.fixture(scope="module")
def doctor(site: Site) -> subprocess.CompletedProcess[str]:
    return site.run("runtime", "doctor", "--timeout", "4", "--json")


def reports(text: str) -> dict[str, dict[str, Any]]:
    events = [json.loads(line) for line in text.splitlines()]
    return {e["name"]: e for e in events if e["event"] == "backend"}


def test_doctor_tells_stage_and_reason_of_each_and_that_one_works(doctor: subprocess.CompletedProcess[str]) -> None:
    found = reports(doctor.stdout)
    assert doctor.returncode == 0
    assert {name: (found[name]["state"], found[name]["stage"], found[name]["reason"]) for name in FAULTS} == FAULTS
    assert all(found[name]["remedy"] for name in FAULTS)
    assert "Traceback" in found["broken"]["detail"]
    assert found["good"]["state"] == "ok"
    assert found["good"]["devices"][0]["name"] == "good chip"


def test_backends_shows_the_same(site: Site, doctor: subprocess.CompletedProcess[str]) -> None:
    shown = site.run("runtime", "backends")
    assert shown.returncode == 0
    rows = {line.split()[0]: " ".join(line.split()) for line in shown.stdout.splitlines() if line[0] != " "}
    for name, (state, stage, reason) in FAULTS.items():
        assert rows[name].startswith(
            f"{name} {state} {name}-rt 2.3 {stage}: {reason[:12]}"
        )  # the rest may be on further lines
    assert rows["good"].startswith("good ok good-rt 2.3 good chip 8.00 GB 1e+06")
    assert reports(site.run("runtime", "backends", "--json").stdout).keys() >= {*FAULTS, "good", "cpu"}


@pytest.mark.parametrize("name", ["broken", "misspelt"])
def test_naming_one_that_fails_exits_with_2_and_its_reason(site: Site, name: str) -> None:
    state, stage, reason = FAULTS[name]
    told = site.run("runtime", "doctor", name)
    assert told.returncode == 2
    assert f"{name}  {state}  {name}-rt 2.3  {stage}" in told.stdout
    assert f"backend '{name}' cannot be used here" in told.stdout
    refused = site.run("runtime", "run", "--backend", name, "hi", "--json")
    assert refused.returncode == 2
    error = json.loads(refused.stdout)
    assert (error["event"], error["code"]) == ("error", "plugin_rejected")
    assert error["message"] == f"backend '{name}' ({name}-rt 2.3) was rejected at stage {stage}: {reason}"


def test_the_good_one_answers_and_the_line_tells_of_the_others(
    site: Site, doctor: subprocess.CompletedProcess[str]
) -> None:
    answer = site.run("runtime", "run", "-v", "--temp", "0", "What is the capital of France?")
    assert answer.stdout == "Paris.\n", answer.stderr
    assert "backend good" in answer.stderr
    told = " ".join(answer.stderr.split())
    for name, (_, _, reason) in FAULTS.items():
        assert f"{name} refused: " in told
        assert reason in told


def test_help_imports_none_of_them_and_costs_little_more(site: Site, tmp_path: Path) -> None:
    code = """
import sys, time
from runtime.cli import main
main(["help"])
taken = time.process_time()
loaded = [name for name in ("good_rt", "broken_rt", "runtime_cpu", "runtime.backend", "pluggy", "numpy") if name in sys.modules]
sys.exit(f"loaded: {loaded}") if loaded else print(taken)
"""
    alone = Site(tmp_path)

    def fastest_s(where: Site) -> float:
        """Processor time, the best of some runs: other processes do not count."""
        runs = [where.run("python", "-c", code) for _ in range(5)]
        assert [run.stderr for run in runs if run.returncode] == []
        return min(float(run.stdout.splitlines()[-1]) for run in runs)

    assert fastest_s(site) < 1.5 * fastest_s(alone) + 0.02


def test_a_probe_has_no_time_below_nothing(site: Site) -> None:
    told = site.run("runtime", "doctor", "--timeout", "-1")
    assert told.returncode == 2
    assert "argument --timeout: '-1' is no time above 0 s" in told.stderr
