"""A folder in which packages are installed without a network, and the commands that see them.

As a program this file is the `pip` of such a folder: `pip install --quiet --editable '.[test]'`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runtime", "runtime_cpu", "runtime_conformance")
COMMANDS = {
    "runtime": '-m runtime "$@"',
    "python": '"$@"',
    "pip": f'{Path(__file__).resolve()} "$@"',
}


class Site:
    """`folder/site` holds packages, `folder/bin` the commands runtime, python and pip, `folder/cache` what is remembered."""

    def __init__(self, folder: Path) -> None:
        self.site, self.bin = folder / "site", folder / "bin"
        self.site.mkdir()
        self.bin.mkdir()
        for name, arguments in COMMANDS.items():
            command = self.bin / name
            command.write_text(f"#!/bin/sh\nexec '{sys.executable}' {arguments}\n")
            command.chmod(0o755)
        sources = dict.fromkeys(_source_root(package) for package in PACKAGES)
        self.environment = {
            **{k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")},
            "PATH": os.pathsep.join([str(self.bin), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(self.site), *sources]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "INSTALLED_SITE": str(self.site),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        write_metadata(ROOT, self.site)

    def write(self, name: str, source: str, *, version: str = "2.3") -> None:
        """Install a backend `name` made of one module."""
        (self.site / f"{name}_rt.py").write_text(source)
        points = f"[runtime.backends.v1]\n{name} = {name}_rt:plugin\n"
        _write_info(self.site, f"{name}-rt", version, points)

    def add(self, *folders: Path) -> None:
        """Folders that hold installed packages of their own."""
        before = self.environment["PYTHONPATH"]
        self.environment["PYTHONPATH"] = os.pathsep.join([*map(str, folders), before])

    def run(self, *command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command; stdout and stderr apart."""
        return subprocess.run(
            [str(c) for c in command], env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=100
        )

    def shell(self, line: str, cwd: Path) -> tuple[int, str]:
        """Exit code of a line of shell, and what a terminal would show of it."""
        done = subprocess.run(
            ["sh", "-c", line],
            env=self.environment,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
        )
        return done.returncode, done.stdout


def write_metadata(project: Path, site: Path) -> str:
    """What an installer writes about the project, read from its pyproject.toml; returns the distribution's name."""
    toml = (project / "pyproject.toml").read_text("utf-8")
    name, version = (re.search(rf'^{key} = "(.*)"$', toml, flags=re.M)[1] for key in ("name", "version"))  # type: ignore[index]
    points = ""
    for group, entries in re.findall(r'^\[project\.entry-points\."(.*)"\].*\n((?:.+\n)*)', toml, flags=re.M):
        points += f"[{group}]\n{entries}".replace('"', "")
    _write_info(site, name, version, points)
    return name


def _write_info(site: Path, name: str, version: str, points: str) -> None:
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points)


def _source_root(package: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parents[1])


def install_editable(project: Path, site: Path) -> None:
    """Like `pip install --editable`: a link to every package of the project, and metadata."""
    write_metadata(project, site)
    for package in project.glob("*/__init__.py"):
        link = site / package.parent.name
        if not link.exists():
            link.symlink_to(package.parent)


def main(arguments: Sequence[str]) -> int:
    """Install the project in the current folder."""
    assert list(arguments) == ["install", "--quiet", "--editable", ".[test]"], arguments
    install_editable(Path.cwd(), Path(os.environ["INSTALLED_SITE"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
