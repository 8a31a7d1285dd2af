"""Checks the rules of the house that linters do not know; prints each breach and exits with 1 if there is any.

- files of code have at most 600 lines, functions that ship at most 60
- the core names no backend: the strings "cuda", "rocm", "xpu", "opencl" occur in no expression of core/
- environment variables are read only where docs/configuration.md documents them, by a name that it lists
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
BACKEND_NAMES = {"cuda", "rocm", "xpu", "opencl"}


def source_files() -> Iterator[Path]:
    """Python files under version control, and those that are about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return (ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists())


def breaches(path: Path, documented: set[str]) -> Iterator[str]:
    """One sentence for every rule that the file breaks."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT)
    lines = text.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"{name}: {lines} lines, at most {MAX_FILE_LINES} are allowed"
    in_core = name.parts[0] == "core"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and name.parts[0] != "tests":
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{name}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES} are allowed"
        elif in_core and isinstance(node, ast.Constant) and node.value in BACKEND_NAMES:
            yield f"{name}:{node.lineno}: the core names the backend '{node.value}'"
        elif name.parts[0] in ("core", "backends", "plugins") and _reads_environment(node):
            variable = _variable(node)
            if variable not in documented:
                yield f"{name}:{node.lineno}: environment variable {variable} is not in docs/configuration.md"


def _reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Subscript):
        return ast.unparse(node.value) == "os.environ"
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv")


def _variable(node: ast.AST) -> str:
    key = node.slice if isinstance(node, ast.Subscript) else node.args[0] if isinstance(node, ast.Call) else None
    return str(key.value) if isinstance(key, ast.Constant) else ast.unparse(key) if key else "?"


def main() -> int:
    """Check every file; returns the exit code."""
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", (ROOT / "docs/configuration.md").read_text(encoding="utf-8")))
    found = [breach for path in source_files() for breach in breaches(path, documented)]
    print("\n".join(found) or "the house is in order")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
