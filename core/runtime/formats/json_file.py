"""JSON objects from files that may be broken or hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.errors import InvalidArgument, MalformedFile
from runtime.formats.mapped import read_start, stat_path
from runtime.formats.sniff import DOWNLOAD_AGAIN, describe

MAX_JSON_BYTES = 100_000_000
"""Index and configuration files; the largest index files in use have some 10 MB."""


def parse_json(text: bytes, what: str, *, unique_keys: bool = False) -> dict[str, Any]:
    """The JSON object in `text`; anything else, with `unique_keys` also a repeated key, raises MalformedFile."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique if unique_keys else None)
    except UnicodeDecodeError as error:
        raise MalformedFile(
            f"{what} is not UTF-8: {error.reason} at byte {error.start}", remedy=DOWNLOAD_AGAIN
        ) from None
    except ValueError as error:
        raise MalformedFile(f"{what} is not valid JSON: {error}", remedy=DOWNLOAD_AGAIN) from None
    except RecursionError:
        raise MalformedFile(f"{what} nests too deep", remedy=DOWNLOAD_AGAIN) from None
    if not isinstance(value, dict):
        raise MalformedFile(f"{what} holds a {type(value).__name__}, expected an object", remedy=DOWNLOAD_AGAIN)
    return value


def read_json(path: Path, *, unique_keys: bool = False) -> dict[str, Any]:
    """The JSON object in the file at `path`."""
    if stat_path(path) != "file":
        raise InvalidArgument(f"'{path}' is a directory, expected a JSON file")
    text = read_start(path, MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise MalformedFile(f"'{path}' has more than {MAX_JSON_BYTES} bytes, too long for a JSON description")
    seems = describe(path)
    what = f"'{path}'" if seems in (None, "JSON text") else f"'{path}' (it seems to be {seems})"
    return parse_json(text, what, unique_keys=unique_keys)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key[:80]!r} appears twice in one object")
            seen.add(key)
    return value
