"""`runtime plugin new`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.cli.plugin import FILES, TEMPLATES, check_name
from runtime.errors import InvalidArgument

EXPECTED = {
    "pyproject.toml",
    "README.md",
    ".gitignore",
    "conformance-waivers.json",
    "runtime_acme_x1/__init__.py",
    "runtime_acme_x1/py.typed",
    "tests/test_acme_x1.py",
    ".github/workflows/ci.yml",
}


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_a_new_package_bears_its_name_everywhere(command: Callable, tmp_path: Path) -> None:
    result = command("plugin", "new", "acme_x1", "--dir", tmp_path / "deep/er")
    assert (result.code, result.err) == (0, "")
    assert files_of(tmp_path / "deep/er") == EXPECTED
    texts = {name: (tmp_path / "deep/er" / name).read_text("utf-8") for name in EXPECTED}
    assert not any("mychip" in text for text in texts.values())
    assert 'name = "runtime-acme-x1"' in texts["pyproject.toml"]
    assert 'acme_x1 = "runtime_acme_x1:plugin"' in texts["pyproject.toml"]
    assert "conformance run --backend acme_x1 " in texts[".github/workflows/ci.yml"]
    assert "pip install --editable '.[test]'" in result.out


def test_the_default_folder_is_named_after_the_distribution(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (event,) = command("plugin", "new", "acme_x1", "--json").events
    assert (event["event"], event["name"], event["folder"]) == ("plugin", "acme_x1", "runtime-acme-x1")
    assert set(event["files"]) == files_of(tmp_path / "runtime-acme-x1") == EXPECTED


def test_every_template_is_used() -> None:
    assert {p.name for p in TEMPLATES.iterdir()} == {f"{template}.template" for template in FILES.values()}


def test_what_is_written_is_well_formed_and_formatted(command: Callable, tmp_path: Path) -> None:
    command("plugin", "new", "acme_x1", "--dir", tmp_path)
    options = ["--isolated", "--no-cache", "--line-length", "120"]
    for verb in (["format", "--check"], ["check", "--select", "E,F,W,I,B,UP,N"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *verb, *options, str(tmp_path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("MyChip", "mychip"),
        ("my-chip", "my_chip"),
        ("my__chip", "my_chip"),
        ("9lives", "lives"),
        ("chip_", "chip"),
        ("../x", "x"),
        ("a b", "a_b"),
        ("é", "mychip"),
        ("", "mychip"),
    ],
)
def test_a_name_that_is_no_package_is_refused_with_one_that_is(name: str, remedy: str) -> None:
    with pytest.raises(InvalidArgument, match="lower-case letters and digits") as refused:
        check_name(name)
    assert refused.value.remedy == f"write {remedy}"
    assert check_name(remedy) == remedy


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("name", "message", "remedy"),
    [
        ("auto", "'auto' cannot name a backend: --backend auto has a meaning already", ""),
        ("tiny", "there is a backend 'tiny' already, in tiny-rt 2.3", "pip uninstall tiny-rt"),
        ("broken", "there is a backend 'broken' already, in broken-rt 2.3", "pip uninstall broken-rt"),
        ("conformance", "there is a Python package runtime_conformance already", "choose another name"),
    ],
)
def test_a_name_that_is_taken_is_refused(
    command: Callable, tmp_path: Path, name: str, message: str, remedy: str
) -> None:
    result = command("plugin", "new", name, "--dir", tmp_path / "new")
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert remedy in result.err
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_left_as_it_is(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/thesis.txt").write_text("42")
    result = command("plugin", "new", "mychip", "--dir", tmp_path / "work", "--json")
    (event,) = result.events
    assert (result.code, event["event"], event["code"]) == (2, "error", "invalid_argument")
    assert event["message"] == f"{tmp_path}/work is not empty, and nothing is overwritten"
    assert event["remedy"] == "name another one with --dir"
    assert files_of(tmp_path) == {"work/thesis.txt"}
    assert "is a file" in command("plugin", "new", "mychip", "--dir", tmp_path / "work/thesis.txt").err
    assert "cannot be written" in command("plugin", "new", "mychip", "--dir", tmp_path / "work/thesis.txt/x").err


def test_an_empty_folder_is_good_enough(command: Callable, tmp_path: Path) -> None:
    assert command("plugin", "new", "mychip", "--dir", tmp_path).code == 0
    events = command("plugin", "new", "mychip", "--dir", tmp_path, "--json").events
    assert json.loads(json.dumps(events[0]))["code"] == "invalid_argument"


def test_the_verb_alone_tells_its_action(command: Callable) -> None:
    result = command("plugin")
    assert result.code == 2
    assert "the following arguments are required: ACTION" in result.err
