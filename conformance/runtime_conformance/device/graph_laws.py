"""Laws of compilation: a fused operation and its parts, a step that is captured and one that is not."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from runtime.graph import expand_composites
from runtime_conformance.case import Case, build_graph
from runtime_conformance.data import make_decoy
from runtime_conformance.device.laws import LAWS, Answer, Law, NotEvaluable, Runner, Stored, num_rows, shaped, with_rows
from runtime_conformance.device.run import POISONS, Session, with_room

Result = tuple[list[str], list[Answer]]
SPARE = 5
"""By how much the region of a captured step allows larger ones: enough to end between the sizes that devices pad to."""


def _expanded(runner: Runner, case: Case, stored: Stored) -> Result:
    """The parts of a composite in one region, before the judge of the composite."""
    graph, _, _ = build_graph(case)
    for node in expand_composites(graph, keep=lambda n: False).nodes:
        found = runner.device.manifest.match(node.op.key, node.facts(graph.dims))
        if found.coverage != "full" or found.rule is None:
            raise NotEvaluable(f"the device does not claim part {node.name}: {'; '.join(found.reasons)}")
        if found.rule.numerics != runner.rule.numerics:
            raise NotEvaluable(f"part {node.name} declares other numerics than the fused operation")
    return [], [runner.run(case, stored, expand=True)]


def _captured(runner: Runner, case: Case, stored: Stored) -> Result:
    """A captured region that is replayed with other contents gives what a fresh one gives, run once.

    Both allow larger steps, so that a device which pads captured steps does; that shows in nothing either.
    """
    import numpy as np

    count = num_rows(case)
    first = with_rows(case, stored, list(range(count))[::-1])[1] if count > 1 else make_decoy(case, stored)
    _, node, sizes = build_graph(case)
    wide = runner.device.manifest.match(node.op.key, node.facts(with_room(sizes, SPARE)))
    spare = SPARE if wide.coverage == "full" else 0
    with closing(Session(runner.device, case, stored, hints={"capture": True}, spare=spare)) as session:
        session.run(first, POISONS[0])
        session.run(make_decoy(case, stored), POISONS[1])
        replayed = shaped(session.run(stored, POISONS[0]), case)
    if runner.rule.numerics.order != "fixed" and "deterministic" not in runner.rule.flags:
        return [], [replayed]
    with closing(Session(runner.device, case, stored, spare=spare)) as session:
        eager = shaped(session.run(stored, POISONS[1]), case)
    equal = all(np.array_equal(a, b) for a, b in zip(replayed, eager))
    faults = [] if equal else ["a captured step that is replayed differs from the same step run eagerly"]
    return faults, [replayed]


def _add(name: str, applies: Any, test: Any) -> None:
    LAWS[name] = Law(name, applies, test)


_add("fused_equals_expanded", lambda c: c.declaration.is_composite, _expanded)
_add("captured_equals_eager", lambda c: True, _captured)
