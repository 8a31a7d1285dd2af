"""Patterns over node names, as `--place` takes them: globs, with slices of numbered parts."""

from __future__ import annotations

import fnmatch
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

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


def check_rules(rules: Sequence[tuple[str, str]], names: Sequence[str]) -> None:
    """Raise InvalidArgument for rules (pattern, device) over nodes called `names` that can hardly be meant.

    Each must select something, and slices of the same parts must not overlap. As Python's, slices may reach beyond the
    last part, so that the same rules serve models of many sizes; parts that none takes stay with the chosen device.
    """
    slices: dict[tuple[str, str], list[_Slice]] = {}
    for pattern, device in rules:
        found = _SLICE.search(pattern)
        before, after = (pattern[: found.start()], pattern[found.end() :]) if found else ("", "")
        numbers = _numbers(before, names) if found else []
        rule = f"'{pattern}={device}'"
        there = f"there are {before}.{numbers[0]} to {before}.{numbers[-1]}" if numbers else ""
        if not any(matches(f"{before}[:]{after}" if found else pattern, name) for name in names):
            raise _selects_nothing(
                rule, pattern, there + (f", and no node in them is called {after}" * bool(after)), names
            )
        if found is not None:
            stop = int(found[2]) if found[2] else sys.maxsize
            slices.setdefault((before, after), []).append(_Slice(int(found[1] or 0), stop, rule))
    for (before, after), of_the_same in slices.items():
        ordered = sorted(of_the_same, key=lambda s: (s.start, s.stop))
        for one, other in itertools.pairwise(ordered):
            if one.stop > other.start:
                raise InvalidArgument(
                    f"placements {one.rule} and {other.rule} both take {before}.{other.start}{after}",
                    remedy="slices must not overlap: let the second begin where the first ends",
                )


@dataclass(frozen=True)
class _Slice:
    """Parts from `start` to before `stop` that `rule` selects."""

    start: int
    stop: int
    rule: str


def _numbers(before: str, names: Sequence[str]) -> list[int]:
    """The numbers of the parts below `before`, ascending."""
    found = set()
    for name in names:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdigit() and fnmatch.fnmatchcase(".".join(parts[:i]), before):
                found.add(int(part))
    return sorted(found)


def _selects_nothing(rule: str, pattern: str, there: str, names: Sequence[str]) -> InvalidArgument:
    if not there:
        there = (
            f"the nodes are {', '.join(dict.fromkeys(name.partition('.')[0] for name in names))}, and what is in them"
        )
    remedy = "runtime plan --verbose lists the nodes"
    if "[" in pattern and not _SLICE.search(pattern):
        remedy = f"a slice is written as layers[4:8], a single part as layers.4; {remedy}"
    return InvalidArgument(f"placement {rule} selects nothing: {there}", remedy=remedy)
