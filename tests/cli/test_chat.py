"""The conversation at a terminal, driven through a pseudo terminal."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="pseudo terminals exist on POSIX systems only")


ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command at the other end of a pseudo terminal."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.seen = ""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            # tests that a shell runs in the background are started with Ctrl-C ignored, and a program inherits that
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(sys.executable, [sys.executable, "-m", "runtime", *arguments], environment)

    def until(self, text: str, limit_s: float = 20.0) -> str:
        """Read until `text` comes; returns what came before it."""
        deadline = time.monotonic() + limit_s
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} did not come, but {self.seen!r}"
            if not self._read():
                raise AssertionError(f"the command ended before {text!r}: {self.seen!r}")
        before, _, self.seen = self.seen.partition(text)
        return before

    def until_printable(self) -> None:
        """Read until something visible has come."""
        while not any(c.isprintable() and c != " " for c in ESCAPES.sub("", self.seen)):
            assert self._read(), f"the command ended after {self.seen!r}"

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def exit_code(self, repeat: str = "") -> int:
        """Wait for the end, typing `repeat` twice a second."""
        typed = time.monotonic()
        while self._read():
            if repeat and time.monotonic() - typed > 0.5:
                typed = time.monotonic()
                self.type(repeat)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def close(self) -> None:
        os.close(self._fd)

    def _read(self) -> bool:
        if not select.select([self._fd], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux reports the end of the other side as an input/output error
            return False
        self.seen += data.decode("utf-8", "replace")
        return bool(data)


@contextmanager
def terminal(arguments: list[str], environment: dict[str, str]) -> Iterator[Terminal]:
    opened = Terminal(arguments, environment)
    try:
        yield opened
    finally:
        opened.close()


def test_a_conversation_remembers_forgets_and_leaves(environment: dict[str, str]) -> None:
    with terminal(["run", "--backend", "tiny", "--temp", "0"], environment) as chat:
        assert "\x1b[2mbackend tiny" in chat.until("> ")
        chat.type("What is the capital of France?\n")
        assert "Paris." in chat.until("> ")
        chat.type("/clear\n")
        assert "forgotten" in chat.until("> ")
        chat.type("/nonsense\n")
        assert "/nonsense is no command" in chat.until("> ")
        chat.type("\x04")
        assert chat.exit_code() == 0


def test_ctrl_c_stops_an_answer_and_at_the_prompt_leaves(
    environment: dict[str, str], tmp_path: Path, write_model: object
) -> None:
    path = tmp_path / "long.gguf"
    assert callable(write_model)
    write_model(path, context=100_000)
    with terminal(["run", "-q", "-m", str(path), "--backend", "tiny", "--ignore-eos"], environment) as chat:
        chat.until("> ")
        chat.type("hi\n")
        chat.until("hi\r\n")
        chat.until_printable()
        chat.type("\x03")
        chat.until("[stopped]")
        chat.until("> ")
        chat.type("\x03")
        # readline shows its prompt shortly before it listens; a signal in between is seen with the next one
        assert chat.exit_code(repeat="\x03") == 0
