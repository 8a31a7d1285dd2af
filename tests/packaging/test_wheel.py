"""What is shipped: the wheel holds the packages and the demo model, installs without a compiler, and answers."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command: str | Path, **environment: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))} | environment
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env, cwd="/", check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built the way pip builds it from a source tree, with a PATH that holds no compiler."""
    folder = tmp_path_factory.mktemp("wheel")
    empty = tmp_path_factory.mktemp("bin")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT, PATH=str(empty))
    (built,) = folder.glob("hal_runtime-*.whl")
    return built


def test_the_wheel_holds_the_packages_the_demo_model_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "runtime/__init__.py",
        "runtime/py.typed",
        "runtime/server/page/index.html",
        "runtime/models/demo/demo-q8_0.gguf",
        "runtime_cpu/__init__.py",
        "runtime_torch/kernels/attention.py",
        "runtime_cuda/__init__.py",
        "runtime_rocm/__init__.py",
        "runtime_xpu/__init__.py",
        "runtime_conformance/cli/verify.py",
    ):
        assert wanted in names
    assert any(n.endswith("LICENSE") for n in names)
    assert not any(n.startswith(("tests/", "tools/", "core/")) for n in names)


def test_the_installed_wheel_answers_and_imports_no_framework(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    question = ["run", "What is the capital of France?", "--temp", "0"]
    answer = run(tmp_path / "venv/bin/runtime", *question, XDG_CACHE_HOME=str(tmp_path))
    assert answer == "Paris.\n"
    listed = run(python, "-m", "pip", "list", "--format", "freeze")
    assert "torch" not in listed.lower()
