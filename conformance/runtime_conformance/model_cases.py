"""Cases out of a model's graph: its operations with its formats, widths and attributes, on a few tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from runtime.backend import Manifest
from runtime.graph import Graph, Node, expand_composites
from runtime_conformance.case import Case
from runtime_conformance.cases import spaces

MAX_ROWS = 512
"""Of a weight: output features are independent of each other, and so are the tokens of a vocabulary."""
_TOKENS = 4


def model_cases(graph: Graph, manifest: Manifest) -> Iterator[Case]:
    """One case per operation, format, width and attributes that occur in the graph; every id once."""
    known = {space.op: space for space in spaces(manifest)}
    seen: set[str] = set()
    for node in expand_composites(graph, lambda n: False).nodes:
        space = known.get(node.op.key)
        if space is None:
            continue
        first = {name: values[0] for name, values in space.domains.items() if values}
        params = first | _params(node, graph)
        for kind in _kinds(space.domains.get("kind", ("normal",))):
            case = space.build(params | {"kind": kind})
            if case is not None and case.id not in seen:
                seen.add(case.id)
                yield case.but(origin="model", note=node.name)


def _kinds(possible: tuple[str, ...]) -> list[str]:
    wanted: tuple[str, ...] = ("outlier", "peaked", "exact", "normal", "steps")
    return [k for k in wanted if k in possible][:2]


def _params(node: Node, graph: Graph) -> dict[str, Any]:
    facts: Mapping[str, Any] = node.facts(graph.dims)
    params: dict[str, Any] = {n: v for n, v in facts.items() if isinstance(v, (int, float, str, bool, tuple))}
    params["T"] = _TOKENS
    for name in ("N", "V"):
        if node.op.name in ("linear", "embed") and isinstance(params.get(name), int):
            params[name] = min(params[name], MAX_ROWS)
    if node.op.name == "attention":
        params["heads"] = (params["num_heads"], params["num_kv_heads"])
    if node.op.name in ("activation", "glu"):
        params["function"] = params.pop("kind")
    if node.op.name == "glu":
        params["format"] = params["gate.format"]
    return params
