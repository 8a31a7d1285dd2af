"""Covering arrays: few rows in which every pair of values of every two factors occurs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from runtime_conformance.data import Stream

_CANDIDATES = 24
Row = dict[str, Any]
Pair = tuple[int, int, int, int]
"""Factor, value, another factor, its value; by number."""


def covering_rows(key: str, domains: Mapping[str, Sequence[Any]], valid: Any = None) -> Iterator[Row]:
    """Rows over `domains`, greedily: the first ones cover the most pairs (after the AETG of Cohen et al. 1997).

    key     names the choice of random candidates: the same key gives the same rows
    valid   row -> whether it is possible; pairs that no valid row was found for are left out
    """
    names = [n for n, values in domains.items() if values]
    sizes = [len(domains[n]) for n in names]
    missing = {
        (a, i, b, j) for a, b in combinations(range(len(names)), 2) for i in range(sizes[a]) for j in range(sizes[b])
    }
    if len(names) < 2:
        for values in domains.values():
            yield from ({names[0]: v} for v in values)
        return
    stream = Stream("covering", key)
    failures = 0
    while missing and failures < 40:
        best: tuple[int, tuple[int, ...]] | None = None
        ordered = sorted(missing)
        for _ in range(_CANDIDATES):
            candidate = _candidate(stream, sizes, ordered)
            row = {n: domains[n][i] for n, i in zip(names, candidate)}
            if valid is not None and not valid(row):
                continue
            gain = sum(pair in missing for pair in _pairs(candidate))
            if best is None or gain > best[0]:
                best = (gain, candidate)
        if best is None or best[0] == 0:
            failures += 1
            if failures % 10 == 0 and missing:
                missing.discard(min(missing))
            continue
        missing.difference_update(_pairs(best[1]))
        yield {n: domains[n][i] for n, i in zip(names, best[1])}


def _candidate(stream: Stream, sizes: Sequence[int], missing: Sequence[Pair]) -> tuple[int, ...]:
    """A random row that holds one of the missing pairs."""
    words = stream.words(len(sizes) + 1)
    row = [int(w % s) for w, s in zip(words.tolist(), sizes)]
    a, i, b, j = missing[int(words[-1]) % len(missing)]
    row[a], row[b] = i, j
    return tuple(row)


def _pairs(row: Sequence[int]) -> list[Pair]:
    return [(a, row[a], b, row[b]) for a, b in combinations(range(len(row)), 2)]
