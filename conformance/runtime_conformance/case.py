"""A case: one operation, its inputs, attributes and kind of data, under an id that hashes all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from runtime.dtypes import FORMATS, Span, TensorSpec
from runtime.errors import InvalidArgument
from runtime.graph import Graph, GraphBuilder, Node
from runtime.ops import CATALOGUE, Op

Role = Literal["input", "weight", "state"]
Expect = Literal["run", "refuse", "outside"]
SYMBOLIC = ("T", "S", "Q", "P", "R")
"""Dimensions of a step, which a real plan leaves open: cases bind them by name too."""


@dataclass(frozen=True)
class Tensor:
    """An input: how it is stored, what it is to the graph, and which data fills it.

    data   (name of a filler, its arguments ...), see `runtime_conformance.data`
    """

    format: str
    shape: tuple[int, ...]
    role: Role = "input"
    data: tuple[Any, ...] = ("normal",)
    layout: str = "plain"

    @property
    def spec(self) -> TensorSpec:
        """With fixed sizes."""
        return TensorSpec(FORMATS[self.format], self.shape, self.layout)


@dataclass(frozen=True)
class Case:
    """What is run, and what is expected of it.

    kind     kind of data: normal, outlier, wide, denormal, nonfinite, cancel, peaked, exact, or values
    expect   run: a result that the judge accepts; refuse: contents that break a rule, an error must come; outside: the
             manifest excludes it, compiling must be refused
    origin   where it comes from: covering, edge, model <name>, refusal, law <name>
    law      relation to be tested instead of the oracle, or ""
    note     for a person: the shape of which model, which bound of the manifest, which rule is broken
    """

    op: str
    inputs: Mapping[str, Tensor]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "normal"
    expect: Expect = "run"
    law: str = ""
    origin: str = "covering"
    note: str = ""

    @cached_property
    def id(self) -> str:
        """Operation and a hash of everything that decides the result: `linear@1/5d20aa`."""
        content = {k: v for k, v in self.to_json().items() if k not in ("origin", "note")}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return f"{self.op}/{hashlib.sha256(text.encode()).hexdigest()[:6]}"

    @property
    def declaration(self) -> Op:
        """The operation."""
        return CATALOGUE[self.op]

    @property
    def num_elements(self) -> int:
        """Of all inputs: a measure of size."""
        total = 0
        for tensor in self.inputs.values():
            count = 1
            for size in tensor.shape:
                count *= size
            total += count
        return total

    def but(self, **changes: Any) -> Case:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def describe(self) -> str:
        """One line: shapes, formats, attributes, kind."""
        parts = [f"{n} {t.format}[{', '.join(map(str, t.shape))}]" for n, t in self.inputs.items()]
        parts += [f"{n}={v}" for n, v in self.attrs.items()]
        if self.law:
            parts.append(f"law {self.law}")
        parts.append(self.kind)
        return ", ".join(parts) + (f" ({self.note})" if self.note else "")

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back equal."""
        data = asdict(self)
        data["attrs"] = {k: list(v) if isinstance(v, tuple) else v for k, v in self.attrs.items()}
        return json.loads(json.dumps(data))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """The case that `to_json` wrote."""
        inputs = {
            name: Tensor(t["format"], tuple(t["shape"]), t["role"], _frozen(t["data"]), t["layout"])
            for name, t in data["inputs"].items()
        }
        attrs = {k: tuple(v) if isinstance(v, list) else v for k, v in data["attrs"].items()}
        return cls(**{**data, "inputs": inputs, "attrs": attrs})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def build_graph(case: Case) -> tuple[Graph, Node, dict[str, int]]:
    """The graph of one node, that node, and the sizes of its symbolic dimensions. Raises InvalidArgument."""
    op = case.declaration
    sizes = _symbolic_sizes(op, case)
    builder = GraphBuilder("case", {name: Span(size, size) for name, size in sizes.items()})
    values = {}
    for name, tensor in case.inputs.items():
        spec = TensorSpec(FORMATS[tensor.format], _with_names(op, name, tensor, sizes), tensor.layout)
        if tensor.role == "weight":
            values[name] = builder.weight(name, spec)
        elif tensor.role == "state":
            values[name] = builder.state(name, spec)
        else:
            values[name] = builder.input(name, tensor.format, spec.shape)
    made = builder.op(case.op, name="node", attrs=dict(case.attrs), **values)
    made = made if isinstance(made, tuple) else (made,)
    for i, value in enumerate(made):
        builder.output(f"y{i}", value)
    graph = builder.build()
    return graph, graph.nodes[0], sizes


def facts(case: Case) -> dict[str, Any]:
    """What a manifest is asked about the case."""
    graph, node, _ = build_graph(case)
    return node.facts(graph.dims)


def output_specs(case: Case) -> tuple[TensorSpec, ...]:
    """Of the outputs, with fixed sizes."""
    _, node, sizes = build_graph(case)
    return tuple(TensorSpec(v.spec.format, v.spec.resolve(sizes), v.spec.layout) for v in node.outputs)


def _symbolic_sizes(op: Op, case: Case) -> dict[str, int]:
    """Symbolic dimensions that the inputs bind; a dimension that a weight or state has too must stay fixed."""
    sizes: dict[str, int] = {}
    if op.family == "collective":
        return sizes
    for name, tensor in case.inputs.items():
        for symbol, size in zip(_symbols(op, name), tensor.shape):
            is_open = isinstance(symbol, str) and symbol in SYMBOLIC and tensor.role == "input"
            if is_open and sizes.setdefault(str(symbol), size) != size:
                raise InvalidArgument(f"case {case.op}: {symbol} is {sizes[str(symbol)]} and {size}")
    for name, tensor in case.inputs.items():
        if tensor.role != "input":
            for symbol in _symbols(op, name):
                sizes.pop(str(symbol), None)
    return sizes


def _with_names(op: Op, name: str, tensor: Tensor, sizes: Mapping[str, int]) -> tuple[int | str, ...]:
    symbols = _symbols(op, name)
    return tuple(
        s if isinstance(s, str) and s in sizes and tensor.role == "input" else size
        for s, size in zip(symbols, tensor.shape)
    )


def _symbols(op: Op, name: str) -> tuple[str | int, ...]:
    from runtime.ops.shapes import port_of

    port = port_of(op, name)
    if port is None:
        raise InvalidArgument(f"{op.key} has no input '{name}'")
    return port.shape
