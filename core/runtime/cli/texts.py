"""Texts from files and from standard input; what is no text is an error with the place where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

from runtime.errors import InvalidArgument


def read_text(path: str) -> str:
    """The text of a file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"'{path}' cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise _no_text(f"'{path}'", error) from error


def read_standard_input() -> str:
    """All of standard input, as it is."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise _no_text("standard input", error) from error


def _no_text(what: str, error: UnicodeDecodeError) -> InvalidArgument:
    return InvalidArgument(
        f"{what} is not UTF-8: {error.reason} at byte {error.start}", remedy="convert it, e.g. with iconv"
    )
