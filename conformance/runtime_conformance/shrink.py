"""Shrinking: the smallest case that still fails, printed as a short script."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from runtime.dtypes import FORMATS
from runtime.errors import RuntimeFault
from runtime_conformance.case import Case, build_graph
from runtime_conformance.runner import Lane, Options
from runtime_conformance.target import Target
from runtime_conformance.verdict import Row, Verdict

MAX_TRIES = 200
_FAILING = (Verdict.FAIL, Verdict.FLAKY, Verdict.CRASH, Verdict.HANG, Verdict.HOST_EXECUTED)


def shrink_case(target: Target, case: Case, options: Options) -> tuple[Case, Row | None]:
    """The smallest failing variant of `case` and its row; the row is None when the case passes as it is."""
    lane = Lane(target, target.manifest(), options)
    try:
        row = lane.row(case)
        if row.verdict not in _FAILING:
            return case, None
        last = [row]

        def fails(smaller: Case) -> bool:
            result = lane.row(smaller)
            if result.verdict in _FAILING:
                last[0] = result
                return True
            return False

        return smallest(case, fails), last[0]
    finally:
        lane.close()


def smallest(case: Case, fails: Callable[[Case], bool]) -> Case:
    """Greedily halves sizes, drops optional inputs and simplifies attributes for as long as the case still fails."""
    tries = 0
    improved = True
    while improved and tries < MAX_TRIES:
        improved = False
        for smaller in _smaller(case):
            tries += 1
            if tries >= MAX_TRIES:
                break
            if _is_possible(smaller) and fails(smaller):
                case, improved = smaller, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    op = case.declaration
    for port in op.inputs:
        if port.optional and port.name in case.inputs:
            yield case.but(inputs={n: t for n, t in case.inputs.items() if n != port.name})
    for attr in op.attrs:
        if not attr.required and attr.name in case.attrs and case.attrs[attr.name] != attr.default:
            yield case.but(attrs={n: v for n, v in case.attrs.items() if n != attr.name})
    for symbol, size in _sizes(case).items():
        step = max((FORMATS[t.format].group_size for n, t in case.inputs.items() if _has(case, n, symbol)), default=1)
        for target in dict.fromkeys((size // 2 // step * step, size - step)):
            if 0 < target < size:
                changed = _resized(case, symbol, target)
                if changed is not None:
                    yield changed
    if case.kind not in ("normal", "values", "exact"):
        inputs = {n: replace(t, data=("normal",)) if t.data[0] == case.kind else t for n, t in case.inputs.items()}
        yield case.but(kind="normal", inputs=inputs)


def _symbols(case: Case, name: str) -> tuple[Any, ...]:
    from runtime.ops.shapes import port_of

    port = port_of(case.declaration, name)
    return port.shape if port else ()


def _has(case: Case, name: str, symbol: str) -> bool:
    return symbol in _symbols(case, name)[-1:]


def _sizes(case: Case) -> dict[str, int]:
    """Dimensions that no contents depend on."""
    sizes: dict[str, int] = {}
    bound: set[str] = set()
    for name, tensor in case.inputs.items():
        for symbol, size in zip(_symbols(case, name), tensor.shape):
            if isinstance(symbol, str) and not symbol.startswith("_"):
                sizes[symbol] = size
                if tensor.data[0] in ("values", "attention_query") or tensor.data[0].startswith("kv_"):
                    bound.add(symbol)
    return {s: n for s, n in sizes.items() if s not in bound and n > 1}


def _resized(case: Case, symbol: str, size: int) -> Case | None:
    inputs = {}
    for name, tensor in case.inputs.items():
        shape = tuple(size if s == symbol else n for s, n in zip(_symbols(case, name), tensor.shape))
        data = tensor.data
        if data[0] in ("indices", "distinct") and symbol in ("V", "E", "T") and len(data) > 1:
            limit = _sizes(case).get(symbol)
            data = (data[0], size) if data[1] == limit else data
        inputs[name] = replace(tensor, shape=shape, data=data)
    return case.but(inputs=inputs)


def _is_possible(case: Case) -> bool:
    try:
        build_graph(case)
    except RuntimeFault:
        return False
    return True


def script(case: Case, row: Row, backend: str, seed: int) -> str:
    """A program that repeats the case and prints where it is wrong."""
    data = json.dumps({k: v for k, v in case.to_json().items() if k not in ("origin", "note")})
    return "\n".join(
        [
            f'"""{row.verdict} {case.id} on {backend}: {row.detail}"""',
            "import json",
            "",
            "from runtime.registry import choose, discover",
            "from runtime_conformance.case import Case",
            "from runtime_conformance.inprocess import Bench",
            "",
            f"case = Case.from_json(json.loads('''{data}'''))",
            f"choice = choose(discover(), {backend!r})",
            "device = choice.backend.open(choice.device)",
            f"print(Bench(seed={seed}).faults(device, case))",
        ]
    )
