"""Begin a backend of your own: `runtime plugin new mychip` writes a package that answers at once."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from runtime.cli.output import emit
from runtime.errors import InvalidArgument

TEMPLATES = Path(__file__).with_name("templates") / "plugin"
"""The package of a backend called `mychip`; a new one is the same with another name."""
SAMPLE = "mychip"
FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    "conformance-waivers.json": "conformance-waivers.json",
    f"runtime_{SAMPLE}/__init__.py": "package.py",
    f"runtime_{SAMPLE}/py.typed": "py.typed",
    f"tests/test_{SAMPLE}.py": "test.py",
    ".github/workflows/ci.yml": "ci.yml",
}
"""File of the new package -> template, which has the suffix .template so that no tool takes it for code of ours."""
RESERVED = ("auto", "host")
"""Names that mean something else wherever a backend is named."""
QUESTION = "What is the capital of France?"
_NAME = re.compile(r"[a-z](_?[a-z0-9])*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "write an installable package: everything on the host at first, one marked place for the first kernel"
    new = actions.add_parser("new", help=text, description=text)
    new.add_argument("name", metavar="NAME", help="of the backend, as in --backend NAME; e.g. mychip")
    new.add_argument("--dir", metavar="DIR", help="folder of the package, new or empty (runtime-NAME)")
    new.add_argument("--json", action="store_true", help="what was written, as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Execute the verb; returns the exit code."""
    name = check_name(args.name)
    folder = Path(args.dir or f"runtime-{distribution_part(name)}")
    _require_unused_folder(folder)
    _require_free_name(name)
    written = write_package(name, folder)
    if args.json:
        emit({"event": "plugin", "name": name, "folder": str(folder), "files": written})
        return 0
    print(f"{folder}: a backend called {name}, {len(written)} files")
    print("\n".join(f"  {path}" for path in written))
    print(f"next:\n  cd {folder}\n  pip install --editable '.[test]'")
    print(f'  runtime run --backend {name} "{QUESTION}"')
    print(f"  runtime conformance support --backend {name} --ops linear")
    print(f"then make linear yours in runtime_{name}/__init__.py")
    return 0


def check_name(name: str) -> str:
    """`name` if it can name a backend, a Python package and a distribution; raises InvalidArgument with the rule.

    PEP 508 and the normal form of PEP 503 for the distribution, an identifier for the package: lower-case ASCII letters
    and digits, single underscores between them, a letter first.
    """
    if not _NAME.fullmatch(name):
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
        raise InvalidArgument(
            f"'{name}' cannot name a backend: lower-case letters and digits, single underscores between them, "
            "a letter first",
            remedy=f"write {near if _NAME.fullmatch(near) else SAMPLE}",
        )
    if name in RESERVED:
        raise InvalidArgument(f"'{name}' cannot name a backend: --backend {name} has a meaning already")
    return name


def distribution_part(name: str) -> str:
    """The name as package indexes write it."""
    return name.replace("_", "-")


def write_package(name: str, folder: Path) -> list[str]:
    """Write the files of a backend called `name` into `folder`; returns their paths. Raises InvalidArgument."""
    written = []
    try:
        for path, template in FILES.items():
            target = folder / path.replace(SAMPLE, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = (TEMPLATES / f"{template}.template").read_text("utf-8")
            text = text.replace(f"runtime-{SAMPLE}", f"runtime-{distribution_part(name)}").replace(SAMPLE, name)
            target.write_text(text, "utf-8")
            written.append(target.relative_to(folder).as_posix())
    except OSError as error:
        raise InvalidArgument(f"the package cannot be written to {folder}: {error}") from error
    return written


def _require_unused_folder(folder: Path) -> None:
    try:
        is_used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise InvalidArgument(f"folder {folder} cannot be read: {error}") from error
    if is_used:
        what = "is not empty" if folder.is_dir() else "is a file"
        raise InvalidArgument(f"{folder} {what}, and nothing is overwritten", remedy="name another one with --dir")


def _require_free_name(name: str) -> None:
    """Two backends of one name would hide each other, and so would two packages."""
    from importlib.util import find_spec

    from runtime.registry import discover

    found = discover()
    owners = {b.name: f"{b.distribution} {b.version}" for b in found.loaded}
    owners |= {r.name: f"{r.distribution} {r.version}" for r in found.rejected}
    if name in owners:
        distribution = owners[name].partition(" ")[0]
        raise InvalidArgument(
            f"there is a backend '{name}' already, in {owners[name]}",
            remedy=f"choose another name, or remove it: pip uninstall {distribution}",
        )
    spec = find_spec(f"runtime_{name}")
    if spec is not None:
        raise InvalidArgument(
            f"there is a Python package runtime_{name} already, at {spec.origin or 'an unknown place'}",
            remedy="choose another name",
        )
