"""What a person or a program sees: answers on stdout, everything else on stderr; no colour and no progress in pipes."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from runtime.errors import RuntimeFault, Unsupported

MAX_WIDTH = 120
MAX_REASONS = 10
SEPARATOR = " · "
ANSI = re.compile(r"\x1b\[[0-9;]*m")
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def guarded(action: Callable[[], int], *, as_json: bool) -> int:
    """Run a verb; typed errors become one readable message (or one JSON object) and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or locale that lacks a character must not end the answer
            stream.reconfigure(errors="replace")
    try:
        code = action()
        sys.stdout.flush()
        return code
    except RuntimeFault as error:
        report_error(error, as_json=as_json)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone. Python would complain again at exit unless stdout leads somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def report_error(error: RuntimeFault, *, as_json: bool) -> None:
    """Write an error: what failed first, then reasons and the remedy, each on a line of its own."""
    if as_json:
        emit({"event": "error", **error.to_json()})
        return
    lines = [f"{paint('error:', '31;1')} {error.message}"]
    if isinstance(error, Unsupported):
        reasons = [reason for reason in error.reasons if reason not in error.message]
        lines += [f"       {reason}" for reason in reasons[:MAX_REASONS]]
        if len(reasons) > MAX_REASONS:
            lines.append(f"       and {len(reasons) - MAX_REASONS} more reasons")
    if error.remedy:
        lines.append(f"       {error.remedy}")
    print("\n".join(lines), file=sys.stderr)


def emit(event: dict[str, Any]) -> None:
    """One JSON object on a line of stdout. NaN and infinity, which JSON does not have, become null."""
    try:
        line = json.dumps(event, ensure_ascii=False, allow_nan=False)
    except ValueError:
        line = json.dumps(_finite(event), ensure_ascii=False, allow_nan=False)
    print(line, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def status(line: str) -> None:
    """A line about the run, for a person: dim on a terminal."""
    print(paint(line, "2"), file=sys.stderr, flush=True)


def paint(text: str, code: str, stream: TextIO | None = None) -> str:
    """`text` in an ANSI style when `stream` (stderr) is a terminal and NO_COLOR is not set."""
    if text and (stream or sys.stderr).isatty() and not os.environ.get("NO_COLOR"):
        return f"\x1b[{code}m{text}\x1b[0m"
    return text


class LoadProgress:
    """A percentage on stderr while a large file is read; silent in pipes and for what takes under half a second."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._shown = False
        self._enabled = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        """Show `done` of `total` bytes."""
        if not self._enabled or total == 0 or (not self._shown and time.monotonic() - self._started < 0.5):
            return
        self._shown = True
        print(f"\rloading {100 * done // total:3d} % of {human_bytes(total)}", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Remove the line again."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def human_bytes(count: int) -> str:
    """Bytes for a person, in decimal units: 4.2 MB."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.2f} {unit}"
        size /= 1000
    raise AssertionError


def human_count(count: int) -> str:
    """A number of parameters or tokens for a person: 1.24 billion."""
    for limit, unit in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:,}"


def plural(count: int, what: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def table(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows in aligned columns; the last column is wrapped below itself where the line would grow too long."""
    widths = [max(_visible(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell + " " * (width - _visible(cell)) for cell, width in zip(row[:-1], widths)]
        lines.append(wrap(row[-1], first=indent + "  ".join([*cells, ""])))
    return "\n".join(lines)


def wrap(text: str, first: str = "") -> str:
    """`text` after the prefix `first`, further lines indented as far; no wider than the terminal or MAX_WIDTH."""
    margin = _visible(first)
    width = max(_line_width() - margin, 24)
    if _visible(text) <= width:
        return (first + text).rstrip()
    lines: list[str] = []
    for part in _parts(text, width):
        if lines and _visible(lines[-1]) + _visible(part) + len(SEPARATOR) <= width:
            lines[-1] += SEPARATOR + part
        else:
            lines += textwrap.wrap(part, width, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * margin).join([first + lines[0], *lines[1:]])


def _parts(text: str, width: int) -> list[str]:
    """Where a text is a list of facts, lines are broken between two of them."""
    parts = text.split(SEPARATOR)
    return parts if all(_visible(part) <= width for part in parts) else [text]


def _line_width() -> int:
    return min(shutil.get_terminal_size((MAX_WIDTH, 0)).columns, MAX_WIDTH) if sys.stdout.isatty() else MAX_WIDTH


def _visible(text: str) -> int:
    return len(ANSI.sub("", text))
