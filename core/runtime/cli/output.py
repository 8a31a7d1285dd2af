"""What a person or a program sees: answers on stdout, everything else on stderr; no colour and no progress in pipes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from runtime.errors import RuntimeFault, Unsupported

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def guarded(action: Callable[[], int], *, as_json: bool) -> int:
    """Run a verb; typed errors become one readable message (or one JSON object) and exit code 2."""
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
        lines += [f"       {reason}" for reason in error.reasons[:10]]
        if len(error.reasons) > 10:
            lines.append(f"       and {len(error.reasons) - 10} more reasons")
    if error.remedy:
        lines.append(f"       {error.remedy}")
    print("\n".join(lines), file=sys.stderr)


def emit(event: dict[str, Any]) -> None:
    """One JSON object on a line of stdout."""
    print(json.dumps(event, ensure_ascii=False), flush=True)


def status(line: str) -> None:
    """A line about the run, for a person: dim on a terminal."""
    print(paint(line, "2"), file=sys.stderr, flush=True)


def paint(text: str, code: str) -> str:
    """`text` in an ANSI style when stderr is a terminal and NO_COLOR is not set."""
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
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


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in aligned columns; the last column is not padded."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)
