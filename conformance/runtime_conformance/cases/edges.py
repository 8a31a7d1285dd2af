"""The edges of a backend's own manifest: each bound, one step inside, one step outside, every listed value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from runtime.backend import Manifest, OneOf, Rule
from runtime.dtypes import Span
from runtime.errors import InvalidArgument
from runtime_conformance.case import Case, facts
from runtime_conformance.cases.covering import covering_rows
from runtime_conformance.cases.space import Space

MAX_ELEMENTS = 1 << 22
"""Larger cases are left out: a bound of a million columns is a test of memory."""
_ROWS_TRIED = 60
_PARAMETERS = {(op, "kind"): "function" for op in ("activation@1", "glu@1", "swiglu_ffn@1", "decoder_layer@1")}
"""Attributes whose name is taken by another factor of the space."""


def edge_cases(space: Space, manifest: Manifest, limit: int) -> Iterator[Case]:
    """At most `limit` cases at the edges of the rules for the operation of `space`."""
    rows = list(islice(covering_rows(space.op, space.domains, lambda r: space.build(r) is not None), _ROWS_TRIED))
    taken = 0
    for rule in manifest.rules:
        if rule.op != space.op:
            continue
        for fact, value, is_inside in _edges(rule, space):
            case = _find(space, manifest, rows, fact, value, is_inside)
            if case is None:
                continue
            where = "inside" if is_inside else "outside"
            yield case.but(origin="edge", expect="run" if is_inside else "outside", note=f"{fact} = {value}, {where}")
            taken += 1
            if taken >= limit:
                return


def _edges(rule: Rule, space: Space) -> Iterator[tuple[str, Any, bool]]:
    for condition in rule.when:
        if isinstance(condition, OneOf):
            yield from ((condition.fact, value, True) for value in condition.values)
            other = _another(condition, space)
            if other is not None:
                yield condition.fact, other, False
            continue
        step = max(1, condition.step)
        low = max(condition.lo, step)
        yield condition.fact, low, True
        yield condition.fact, low + step, True
        if condition.lo > 1:
            yield condition.fact, condition.lo - step, False
        if condition.step > 1:
            yield condition.fact, low + step + 1, False
        if condition.hi is not None:
            high = condition.hi - condition.hi % step
            yield condition.fact, high, True
            yield condition.fact, high - step, True
            yield condition.fact, high + step, False


def _another(condition: OneOf, space: Space) -> Any:
    """A value that the condition excludes."""
    name = _PARAMETERS.get((space.op, condition.fact), condition.fact)
    candidates = space.domains.get(name, ())
    if condition.fact.endswith(".format") and not candidates:
        candidates = ("f32", "f16", "bf16")
    return next((v for v in candidates if v not in condition.values), None)


def _find(
    space: Space, manifest: Manifest, rows: list[dict[str, Any]], fact: str, value: Any, is_inside: bool
) -> Case | None:
    """A case with this fact that the manifest accepts (inside), or refuses for this fact alone (outside)."""
    name = _PARAMETERS.get((space.op, fact), fact)
    for row in rows:
        case = _build(space, row | {name: value})
        if case is None or case.num_elements > MAX_ELEMENTS:
            continue
        try:
            known = facts(case)
        except InvalidArgument:
            continue
        if not _has(known, fact, value):
            continue
        covered = manifest.match(space.op, known).coverage == "full"
        if is_inside and covered:
            return case
        if not is_inside and not covered and _covers_otherwise(space, manifest, row, known, fact):
            return case
    return None


def _covers_otherwise(
    space: Space, manifest: Manifest, row: dict[str, Any], known: Mapping[str, Any], fact: str
) -> bool:
    """Whether some rule accepts everything about the case except `fact`."""
    for rule in manifest.rules:
        if rule.op != space.op:
            continue
        answers = {c.fact: c.test(known.get(c.fact))[0] for c in rule.when if c.fact in known}
        if len(answers) == len({c.fact for c in rule.when}) and all(
            a == "full" or f == fact for f, a in answers.items()
        ):
            return True
    return False


def _build(space: Space, row: dict[str, Any]) -> Case | None:
    try:
        return space.build(row)
    except (InvalidArgument, KeyError, ZeroDivisionError, ValueError):
        return None  # a value that the builder of the operation cannot place


def _has(known: Mapping[str, Any], fact: str, value: Any) -> bool:
    given: Any = known.get(fact)
    if isinstance(given, Span):
        given = given.lo
    return bool(given == value)
