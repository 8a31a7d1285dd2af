"""All cases of a backend: covering arrays, shapes of real models, edges of its manifest, refusals, laws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from runtime.backend import Manifest, OneOf, Rule
from runtime.errors import InvalidArgument
from runtime.executor import matches
from runtime.ops import CATALOGUE
from runtime_conformance.case import Case, build_graph
from runtime_conformance.cases import dense, rows, serving
from runtime_conformance.cases.attention import attention_space
from runtime_conformance.cases.composites import composite_spaces
from runtime_conformance.cases.covering import covering_rows
from runtime_conformance.cases.edges import edge_cases
from runtime_conformance.cases.kv import kv_spaces
from runtime_conformance.cases.past import PAST_FAILURES
from runtime_conformance.cases.refusals import refusal_cases
from runtime_conformance.cases.space import Space
from runtime_conformance.levels import LEVELS, level_of

BUDGETS = {"smoke": 4, "pr": 40, "full": 10_000}
"""Rows of the covering array per operation; edges, models, refusals and laws come on top (one model in smoke)."""


def spaces(manifest: Manifest) -> tuple[Space, ...]:
    """One space per operation, over the cache layouts that the backend offers."""
    return (
        *dense.SPACES,
        *rows.SPACES,
        attention_space(manifest),
        *kv_spaces(manifest),
        *serving.SPACES,
        *composite_spaces(manifest),
    )


def make_cases(
    manifest: Manifest, *, level: str = "L2", budget: str = "pr", ops: Sequence[str] = ("*",)
) -> Iterator[Case]:
    """Cases up to `level` for operations that match one of the patterns `ops` ("attention*"); every id once."""
    if budget not in BUDGETS:
        raise InvalidArgument(f"budget '{budget}' is unknown; it is one of {', '.join(BUDGETS)}")
    seen: set[str] = set()
    for space in spaces(manifest):
        op = CATALOGUE[space.op]
        if LEVELS.index(level_of(op)) > LEVELS.index(level):
            continue
        if not any(matches(p, op.name) or matches(p, op.key) for p in ops):
            continue
        for case in _of_space(space, manifest, budget):
            if case.id not in seen and _is_possible(case):
                seen.add(case.id)
                yield case


def _of_space(space: Space, manifest: Manifest, budget: str) -> Iterator[Case]:
    limit = BUDGETS[budget]
    declared = [r for r in manifest.rules if r.op == space.op]
    op = CATALOGUE[space.op]
    if op.is_composite and not declared:
        return  # always optional, and expanded by the core
    yield from (c.but(origin="past") for c in PAST_FAILURES if c.op == space.op)
    for row in space.models[: 1 if budget == "smoke" else None]:
        case = space.build(row)
        if case is not None:
            yield case.but(origin="model")
    claimed, unclaimed = _split_domains(space, declared)
    rows = covering_rows(space.op, claimed, lambda r: space.build(r) is not None)
    yield from (case for row in islice(rows, limit) if (case := space.build(row)) is not None)
    for name, values in unclaimed.items():
        yield from _one_of_each(space, name, values)
    if declared:
        yield from edge_cases(space, manifest, limit)
        yield from refusal_cases(op)
    from runtime_conformance.device.laws import law_cases

    yield from law_cases(space, manifest, limit)


Domains = Mapping[str, tuple[Any, ...]]


def _split_domains(space: Space, declared: Sequence[Rule]) -> tuple[Domains, Domains]:
    """Values of factors that some rule allows, and those that every rule excludes.

    What nobody claims needs one case to be reported, not its share of the covering array.
    """
    claimed, unclaimed = dict(space.domains), {}
    for name, values in space.domains.items():
        conditions = [[c for c in rule.when if isinstance(c, OneOf) and c.fact == name] for rule in declared]
        if not conditions or not all(conditions):
            continue
        allowed = {v for found in conditions for v in found[0].values}
        kept = tuple(v for v in values if v in allowed)
        if kept:
            claimed[name] = kept
            unclaimed[name] = tuple(v for v in values if v not in allowed)
    return claimed, unclaimed


def _one_of_each(space: Space, name: str, values: Sequence[Any]) -> Iterator[Case]:
    """For each value of one factor, the first possible row with the first values of all others."""
    first = {n: v[0] for n, v in space.domains.items() if v}
    for value in values:
        for row in (first | {name: value}, *({**first, name: value, "kind": k} for k in space.domains.get("kind", ()))):
            case = space.build(row)
            if case is not None:
                yield case
                break


def _is_possible(case: Case) -> bool:
    """Whether the operation allows the case; a row of a covering array may break one of its rules."""
    if case.expect == "refuse":
        return True
    try:
        build_graph(case)
    except InvalidArgument:
        return False
    return True
