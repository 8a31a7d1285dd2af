"""The suite on backends as users have them, through the command: the processor's, and OpenCL where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import re

import pytest

from runtime.cli import main
from runtime_conformance.report.result import dump, without_times

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def conformant(capsys, folder, *arguments: str) -> dict:
    code = main(["conformance", "run", "--budget", "smoke", "--jobs", "2", "--out", str(folder), *arguments])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "\nconformant" in said
    return json.loads((folder / "result.json").read_text("utf-8"))


def test_the_cpu_backend_is_conformant_up_to_groups_of_processes(capsys, tmp_path):
    result = conformant(capsys, tmp_path, "--backend", "cpu", "--level", "L3", "--profile", "Q-GGUF-full")
    rows = {r["id"]: r["verdict"] for r in result["rows"]}
    assert rows["scale/tensor_parallel_2_equals_1"] == "PASS"
    assert rows["scale/a_dead_peer_is_noticed"] == "PASS"
    assert rows["serve/rejected_drafts_leave_no_trace"] == "PASS"
    assert result["counts"]["PASS"] > 250


def test_two_runs_with_one_seed_differ_in_nothing_but_times(capsys, tmp_path):
    runs = [conformant(capsys, tmp_path / name, "--backend", "cpu", "--level", "L3", "--seed", "3") for name in "ab"]
    first, second = (dump(without_times(run)) for run in runs)
    assert first == second


def test_a_whole_program_can_be_repeated_by_the_id_that_a_report_shows(capsys):
    assert main(["conformance", "repro", "serve/straight", "--backend", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("PASS serve/straight\n")


def test_the_support_matrix_has_a_speed(capsys):
    assert main(["conformance", "support", "--backend", "cpu", "--ops", "rms_norm@1", "--budget", "smoke"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| rms_norm@1 | native")]
    assert re.search(r"\| \d+ % \|$", row)


@pytest.fixture
def opencl():
    if importlib.util.find_spec("runtime_opencl") is None or importlib.util.find_spec("pyopencl") is None:
        if os.environ.get("RUNTIME_REQUIRE_OPENCL"):
            pytest.fail("RUNTIME_REQUIRE_OPENCL is set and the opencl backend is not installed", pytrace=False)
        pytest.skip("the opencl backend is not installed")


def test_the_opencl_backend_serves_models_of_common_files(opencl, capsys, tmp_path):
    result = conformant(capsys, tmp_path, "--backend", "opencl", "--level", "L3", "--profile", "Q-GGUF-core")
    assert result["counts"]["PASS"] > 200
    assert result["fingerprint"]["distribution"] == "runtime-opencl"


def test_linear_and_attention_never_run_on_the_host_under_opencl(opencl, capsys):
    code = main(["run", "--backend", "opencl", "-n", "4", "--temp", "0", "-v", "What is the capital of France?"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert said.out.startswith("Paris")
    assert "all 9 operations native (100.0 % of the work)" in said.err
