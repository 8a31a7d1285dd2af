"""docs/vendor-ci.md as a vendor lives it: an empty environment, wheels, one command, artefacts; and the workflow.

The core is built without a compiler: the verdict does not depend on its kernels, and building them takes minutes.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/vendor-ci.md").read_text("utf-8")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Runner:
    """A machine of somebody else's CI: its shell sees no environment of ours, and our wheels in place of an index's."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.cwd = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "RUNTIME_"))}
        links = " ".join(filter(None, [str(wheels), os.environ.get("PIP_FIND_LINKS")]))
        self.environment = kept | {"PIP_FIND_LINKS": links, "XDG_CACHE_HOME": str(folder / "cache")}
        bin_folder = folder / "bin"
        bin_folder.mkdir(parents=True)
        (bin_folder / "python3").symlink_to(sys.executable)
        self.environment["PATH"] = os.pathsep.join([str(bin_folder), os.environ["PATH"]])

    def run(self, line: str, *codes: int) -> str:
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode in (codes or (0,)), f"$ {line}\n{done.stdout}\nexit code {done.returncode}"
        # What pip has to say about the indexes of this machine is not part of the page.
        return re.sub(r"^WARNING: .*\n", "", done.stdout, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of the core (pure: its PATH holds no compiler) and of both plugins."""
    folder = tmp_path_factory.mktemp("wheels")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    for project in (ROOT, ROOT / "plugins/example", ROOT / "plugins/opencl"):
        path = str(tmp_path_factory.mktemp("bin")) if project == ROOT else os.environ["PATH"]
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(project)]
        subprocess.run(command, check=True, env=environment | {"PATH": path})
    assert sorted(p.name.partition("-")[0] for p in folder.iterdir()) == [
        "hal_runtime",
        "runtime_example",
        "runtime_opencl",
    ]
    return folder


def check_artefacts(report: Path) -> dict[str, int]:
    """All four forms are there and agree; returns the counts of verdicts that occurred."""
    result = json.loads((report / "result.json").read_text("utf-8"))
    assert result["fingerprint"]["python"] == platform.python_version()
    cases = ET.parse(report / "junit.xml").getroot().findall(".//testcase")
    assert len(cases) == len(result["rows"]) > 100
    page = (report / "index.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert "| linear@1 | native |" in (report / "support.md").read_text("utf-8")
    return {verdict: count for verdict, count in result["counts"].items() if count}


def test_one_command_in_an_empty_environment(wheels: Path, tmp_path: Path) -> None:
    runner = Runner(tmp_path, wheels)
    (console,) = re.findall(r"^```console\n(.*?)^```$", PAGE, flags=re.M | re.S)
    for part in re.split(r"^\$ ", console, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        printed = runner.run(command, *([2] if "exit 2" in shown else []))
        wanted = ".*".join(re.escape(text) for text in shown.split("..."))
        assert re.fullmatch(wanted, printed, flags=re.S), printed
    counts = check_artefacts(tmp_path / "report")
    assert counts.keys() <= {"PASS", "UNSUPPORTED_REQUIRED", "UNSUPPORTED_OPTIONAL", "VACUOUS"}
    assert counts["PASS"] >= 40


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="pocl is packaged for x86-64 Linux alone"
)
def test_a_backend_with_kernels_of_its_own_is_conformant(wheels: Path, tmp_path: Path) -> None:
    runner = Runner(tmp_path, wheels)
    runner.run("python3 -m venv .venv")
    runner.run(".venv/bin/pip install --quiet hal-runtime 'runtime-opencl[pocl]'")
    options = "--level L2 --profile Q-GGUF-core --budget smoke --jobs 2 --out report"
    printed = runner.run(f".venv/bin/runtime conformance run --backend opencl {options}")
    assert "\nconformant · report/index.html report/junit.xml report/result.json\n" in printed
    counts = check_artefacts(tmp_path / "report")
    assert counts.keys() <= {"PASS", "UNSUPPORTED_OPTIONAL", "VACUOUS"}


def test_the_workflow_of_a_new_package_runs_step_by_step(wheels: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the oracles")
    runner = Runner(tmp_path, wheels)
    runner.run("python3 -m venv tools")
    runner.run("tools/bin/pip install --quiet hal-runtime")
    runner.run("tools/bin/runtime plugin new mychip --dir checkout")
    checkout = tmp_path / "checkout"
    runner.cwd = checkout
    package = checkout / "runtime_mychip/__init__.py"
    package.write_text(package.read_text("utf-8").replace("    # @kernel(", "    @kernel("))
    test = checkout / "tests/test_mychip.py"
    test.write_text(test.read_text("utf-8").replace("= set()", '= {"linear@1"}'))

    jobs = yaml.safe_load((checkout / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"]
    assert list(jobs) == ["test", "conformance"]
    for step in jobs["test"]["steps"]:
        if "run" in step:
            printed = runner.run(step["run"])
    assert "3 passed" in printed
    shutil.rmtree(checkout / ".venv")

    for step in jobs["conformance"]["steps"]:
        if step.get("name") == "conformance":
            command = re.sub(r"\$\{\{.*?\}\}", "smoke", step["run"])
            printed = runner.run(command, 2)
            assert "FAIL" not in printed
        elif "hashFiles" in step.get("if", ""):
            shutil.copytree(checkout / "report", checkout / "baseline")
            runner.run(step["run"])
        elif "run" in step:
            runner.run(step["run"])
    check_artefacts(checkout / "report")
