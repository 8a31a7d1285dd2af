"""`runtime serve` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
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
        # A pipe that nobody reads would stop the server at its next message.
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def hears(self, text: str, timeout_s: float = 10.0) -> None:
        """Wait for a line on its standard error."""
        deadline = time.monotonic() + timeout_s
        while not any(text in line for line in list(self.lines)):
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.01)

    def children(self) -> list[int]:
        """Its child processes: the engine."""
        pid = self.process.pid
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]

    def _read(self) -> str:
        assert self.process.stderr
        return self.process.stderr.readline()

    def _drain(self) -> None:
        while line := self._read():
            self.lines.append(line)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()
