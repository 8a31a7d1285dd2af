"""`runtime serve` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class ServerProcess:
    """`runtime serve` as a person starts it; `url` is what the ready line says."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        path = [str(ROOT / "core"), str(ROOT / "backends/cpu"), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "serve", "--port", "0", "--ctx", "512", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in path if p), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        while "ready: " not in (self.lines or [""])[-1]:
            line = self._read()
            assert line, self.lines
            self.lines.append(line)
        self.url = self.lines[-1].split()[1]

    def children(self) -> list[int]:
        """Its child processes: the engine."""
        pid = self.process.pid
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]

    def _read(self) -> str:
        assert self.process.stderr
        return self.process.stderr.readline()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
