"""Patterns over node names, as `--place` takes them: globs, with slices of numbered parts."""

from __future__ import annotations

import fnmatch
import re

from runtime.errors import InvalidArgument

_SLICE = re.compile(r"\[(\d*):(\d*)\]")


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` selects the node called `name` or one of the parts that it belongs to.

    layers.0          layers.0 and everything in it (layers.0.attention, ...)
    layers.*.mlp      a glob, as of file names
    layers[4:8]       layers.4 to layers.7 and everything in them; either bound may be left out
    """
    found = _SLICE.search(pattern)
    if found is None:
        return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")
    start = int(found[1] or 0)
    stop = int(found[2]) if found[2] else None
    if stop is not None and stop <= start:
        raise InvalidArgument(f"pattern '{pattern}' selects nothing: [{start}:{stop}] is empty")
    before, after = pattern[: found.start()], pattern[found.end() :]
    parts = name.split(".")
    for i in range(len(parts)):
        if not parts[i].isdigit() or not fnmatch.fnmatchcase(".".join(parts[:i]), before):
            continue
        index = int(parts[i])
        if index < start or (stop is not None and index >= stop):
            continue
        rest = "".join(f".{p}" for p in parts[i + 1 :])
        if not after or fnmatch.fnmatchcase(rest, after) or fnmatch.fnmatchcase(rest, f"{after}.*"):
            return True
    return False
