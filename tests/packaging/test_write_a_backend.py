"""docs/write-a-backend.md works as written: its files make a package, its programs print what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import runtime
from runtime.backend import BackendHooks, DeviceInfo

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/write-a-backend.md"


class Block(NamedTuple):
    language: str
    info: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    for language, info, text in re.findall(r"^```(\w+) ?(.*?)\n(.*?)^```$", page, flags=re.M | re.S):
        yield Block(language, info, text)


def install(project: Path, site: Path) -> None:
    """What an installer writes about the project, read from its pyproject.toml."""
    toml = (project / "pyproject.toml").read_text("utf-8")
    name, version, group, entry = (
        re.search(pattern, toml, flags=re.M)[1]  # type: ignore[index]
        for pattern in (
            r'^name = "(.*)"$',
            r'^version = "(.*)"$',
            r'^\[project\.entry-points\."(.*)"\]$',
            r"^\[project\.entry-points.*\n(.*)$",
        )
    )
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    entry_name, _, value = entry.partition(" = ")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry_name} = {value.strip(chr(34))}\n")


def test_every_file_and_program_of_the_page_works_in_order(tmp_path: Path) -> None:
    core = str(Path(runtime.__file__).parents[1])
    search = os.pathsep.join([str(tmp_path), core])
    environment = {**os.environ, "PYTHONPATH": search, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    printed, programs = None, 0
    for block in blocks(PAGE.read_text("utf-8")):
        if block.info.startswith("file="):
            path = tmp_path / block.info.removeprefix("file=")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
            if path.name == "pyproject.toml":
                install(tmp_path, tmp_path)
        elif block.language == "python":
            assert block.info == "run", "a program of the page is executed, or it is a file"
            programs += 1
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", block.text],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            printed = done.stdout
        elif block.language == "text":
            assert printed == block.text
    assert programs == 3


def test_the_page_names_every_hook_and_every_field_of_a_device() -> None:
    page = PAGE.read_text("utf-8")
    hooks = [name for name in vars(BackendHooks) if name.startswith("runtime_")]
    assert [h for h in hooks if f"`{h}(" not in page] == []
    assert [f for f in DeviceInfo.__dataclass_fields__ if f"`{f}`" not in page] == []


def test_the_smallest_backend_is_under_sixty_lines_and_imports_only_the_contract() -> None:
    source = (ROOT / "plugins/example/runtime_example/__init__.py").read_text("utf-8")
    assert len(source.splitlines()) < 60
    modules = re.findall(r"^\s*(?:from|import) (\S+)", source, flags=re.M)
    assert set(modules) == {"__future__", "typing", "runtime.backend", "numpy.typing"}
