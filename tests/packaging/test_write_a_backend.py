"""docs/write-a-backend.md works as written: its files make a package, its programs print what the page shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from installed import ROOT, Site

from runtime.backend import BackendHooks, DeviceInfo
from runtime.cli.plugin import TEMPLATES

PAGE = ROOT / "docs/write-a-backend.md"


class Block(NamedTuple):
    language: str
    info: str
    text: str


class Page:
    """Executes the blocks of the page in order: files are written, commands and programs print what the page shows."""

    def __init__(self, folder: Path) -> None:
        self.site = Site(folder)
        self.cwd = folder / "work"
        self.cwd.mkdir()
        self.printed = ""

    def follow(self, block: Block) -> None:
        if block.info.startswith("file="):
            name, _, how = block.info.removeprefix("file=").partition(" ")
            path = self.cwd / name
            path.write_text(with_lines(path.read_text(), block.text) if how == "lines" else block.text)
        elif block.language == "console":
            for command, shown in commands(block.text):
                self.enter(command, shown)
        elif block.language == "python":
            assert block.info == "run", "a program of the page is executed, or it is a file"
            done = self.site.run("python", "-W", "error", "-c", block.text, cwd=self.cwd)
            assert done.returncode == 0, done.stderr
            self.printed = done.stdout
        elif block.language == "text":
            assert self.printed == block.text

    def enter(self, command: str, shown: str) -> None:
        if command.startswith("cd "):
            self.cwd = self.cwd / command.removeprefix("cd ")
            return
        code, printed = self.site.shell(command, self.cwd)
        assert code == 0, f"$ {command}\n{printed}"
        assert pattern(shown).fullmatch(printed), f"$ {command}\n{printed}\nis not what the page shows:\n{shown}"


def blocks(page: str) -> Iterator[Block]:
    for language, info, text in re.findall(r"^```(\w+) ?(.*?)\n(.*?)^```$", page, flags=re.M | re.S):
        yield Block(language, info, text)


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Commands of a console and what each prints."""
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def pattern(shown: str) -> re.Pattern[str]:
    """`...` stands for anything."""
    return re.compile(".*".join(re.escape(part) for part in shown.split("...")), flags=re.S)


def with_lines(text: str, lines: str) -> str:
    """`text` with the lines that begin like those of `lines`, up to the equals sign, replaced by them."""
    for line in lines.splitlines():
        begin = line.partition("=")[0]
        text, count = re.subn(f"^{re.escape(begin)}.*$", lambda _, line=line: line, text, flags=re.M)
        assert count == 1, line
    return text


@pytest.mark.timeout(240)
def test_every_command_file_and_program_of_the_page_works_in_order(tmp_path: Path) -> None:
    page = Page(tmp_path)
    followed = [block.language for block in blocks(PAGE.read_text("utf-8")) if page.follow(block) is None]
    assert (followed.count("console"), followed.count("text")) == (3, 3)


def test_the_first_kernel_of_the_page_is_the_marked_place_of_a_new_package() -> None:
    new = (TEMPLATES / "package.py.template").read_text("utf-8")
    without_mark = re.sub(r"^    # The first kernel.*\n", "", new, flags=re.M)
    written = without_mark.replace("    # @kernel(", "    @kernel(").replace("  # noqa: F401", "")
    assert written.count("    @kernel(") == 1
    assert written in {block.text for block in blocks(PAGE.read_text("utf-8"))}


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


def test_the_workflow_of_vendor_ci_is_that_of_a_new_package() -> None:
    page = (ROOT / "docs/vendor-ci.md").read_text("utf-8")
    assert [b.text for b in blocks(page) if b.language == "yaml"] == [
        (TEMPLATES / "ci.yml.template").read_text("utf-8")
    ]
