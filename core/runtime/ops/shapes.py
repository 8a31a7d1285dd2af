"""The shape rule that follows from the ports: binding op-local dimensions, checking formats, deriving outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from runtime.dtypes import FORMATS, Dim, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.declare import Attrs, Op, Port, Specs


def port_of(op: Op, name: str) -> Port | None:
    """The input port that the input called `name` belongs to; `x3` belongs to a variadic port `x`."""
    for port in op.inputs:
        if port.name == name or (port.variadic and re.fullmatch(re.escape(port.name) + r"\d+", name)):
            return port
    return None


def infer_outputs(op: Op, inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    """Check inputs and attributes of a node against `op` and return the specs of its outputs."""
    _check_attrs(op, attrs)
    bound = bind_dims(op, inputs)
    if op.infer is not None:
        return op.infer(inputs, attrs)
    default = next((s.format for s in inputs.values() if s.format.kind == "float" and s.layout == "plain"), None)
    specs = []
    for port in op.outputs:
        if port.name in op.inplace:
            specs.append(inputs[op.inplace[port.name]])
            continue
        fmt = FORMATS[port.formats[0]] if len(port.formats) == 1 or default is None else default
        specs.append(TensorSpec(fmt, _output_shape(op, port, bound), port.layout))
    return tuple(specs)


def bind_dims(op: Op, inputs: Specs) -> dict[str, Dim]:
    """Op-local dimension -> size; raises InvalidArgument where an input is missing, unknown or does not fit."""
    for name in inputs:
        if port_of(op, name) is None:
            raise InvalidArgument(f"{op.key} has no input '{name}'; its inputs are {_names(op.inputs)}")
    bound: dict[str, Dim] = {}
    for port in op.inputs:
        given = [n for n in inputs if port_of(op, n) is port]
        if not given and not port.optional:
            raise InvalidArgument(f"{op.key} needs input '{port.name}' ({port.doc or 'tensor'})")
        for name in given:
            _bind_port(op, port, name, inputs[name], bound)
    return bound


def node_facts(op: Op, inputs: Specs, outputs: Specs, attrs: Attrs) -> dict[str, Any]:
    """See `Op.facts`."""
    facts: dict[str, Any] = {n: d for n, d in bind_dims(op, inputs).items() if not n.startswith("...")}
    for name, spec in [*inputs.items(), *outputs.items()]:
        facts[f"{name}.format"] = spec.format.name
        if spec.layout != "plain":
            facts[f"{name}.layout"] = spec.layout
    for port in op.inputs:
        if port.optional:
            facts[f"has.{port.name}"] = port.name in inputs
    for port, spec in zip(op.outputs, outputs.values(), strict=False):
        for symbol, size in zip(reversed(port.shape), reversed(spec.shape), strict=False):
            if isinstance(symbol, str) and symbol != "...":
                facts.setdefault(symbol, size)
    for attr in op.attrs:
        facts[attr.name] = attrs.get(attr.name, attr.default)
    return facts


def _bind_port(op: Op, port: Port, name: str, spec: TensorSpec, bound: dict[str, Dim]) -> None:
    if "*" not in port.formats and spec.format.name not in port.formats:
        raise InvalidArgument(f"{op.key} input '{name}' is {spec.format.name}; allowed: {', '.join(port.formats)}")
    if spec.layout != port.layout:
        raise InvalidArgument(f"{op.key} input '{name}' has layout {spec.layout}, it must be {port.layout}")
    symbols = port.shape
    shape: tuple[Dim, ...] = spec.shape
    if symbols and symbols[0] == "...":
        symbols = symbols[1:]
        outer = shape[: len(shape) - len(symbols)]
        if len(shape) < len(symbols) or bound.setdefault("...", str(outer)) != str(outer):
            raise InvalidArgument(f"{op.key} input '{name}' is {spec}; its outer dimensions must be {bound.get('...')}")
        shape = shape[len(shape) - len(symbols) :]
    if len(shape) != len(symbols):
        raise InvalidArgument(f"{op.key} input '{name}' is {spec}; its shape must be [{_join(port.shape)}]")
    for symbol, size in zip(symbols, shape):
        expected = symbol if isinstance(symbol, int) else bound.setdefault(symbol, size)
        if expected != size:
            raise InvalidArgument(
                f"{op.key} input '{name}' is {spec}, its shape must be [{_join(port.shape)}] with {symbol} = {expected}"
            )


def _output_shape(op: Op, port: Port, bound: Mapping[str, Dim]) -> tuple[Dim, ...]:
    assert "..." not in port.shape, f"{op.key}: outer dimensions of an output need an infer function"
    return tuple(s if isinstance(s, int) else bound[s] for s in port.shape)


def _check_attrs(op: Op, attrs: Attrs) -> None:
    known = {a.name: a for a in op.attrs}
    for name, value in attrs.items():
        attr = known.get(name)
        if attr is None:
            raise InvalidArgument(f"{op.key} has no attribute '{name}'; its attributes are {_names(op.attrs)}")
        if value is None and not attr.required:
            continue
        if not isinstance(value, attr.type) and not (attr.type is float and isinstance(value, int)):
            raise InvalidArgument(f"{op.key} attribute {name} = {value!r} must be {attr.type.__name__}")
        if attr.choices and value not in attr.choices:
            raise InvalidArgument(f"{op.key} attribute {name} = {value!r}; allowed: {_join(attr.choices)}")
    for attr in op.attrs:
        if attr.required and attrs.get(attr.name) is None:
            raise InvalidArgument(f"{op.key} needs attribute '{attr.name}' ({attr.doc})")


def _names(parts: Iterable[Any]) -> str:
    return ", ".join(p.name for p in parts) or "none"


def _join(parts: Iterable[Any]) -> str:
    return ", ".join(str(p) for p in parts)
