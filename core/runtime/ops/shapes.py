"""The shape rule that follows from the ports: binding op-local dimensions, checking formats, deriving outputs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from runtime.dtypes import FORMATS, Dim, Format, TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.declare import Attrs, Op, Port, Specs


def port_of(op: Op, name: str) -> Port | None:
    """The input port that the input called `name` belongs to; `x3` belongs to a variadic port `x`."""
    return _find_port(op.inputs, name)


def infer_outputs(op: Op, inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    """Check inputs and attributes of a node against `op` and return the specs of its outputs."""
    _check_attrs(op, attrs)
    bound = bind_dims(op, inputs)
    if op.infer is not None:
        return op.infer(inputs, op.complete_attrs(attrs))
    default = _activation_format(op, inputs)
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
    given_to = [_given(op, port, inputs) for port in op.inputs]
    if sum(map(len, given_to)) != len(inputs):
        unknown = next(name for name in inputs if port_of(op, name) is None)
        raise InvalidArgument(f"{op.key} has no input '{unknown}'; its inputs are {_names(op.inputs)}")
    bound: dict[str, Dim] = {}
    for port, given in zip(op.inputs, given_to, strict=True):
        if port.variadic and given != [f"{port.name}{i}" for i in range(len(given))]:
            raise InvalidArgument(f"{op.key} got {_join(given)}; they must be {port.name}0, {port.name}1, ... in a row")
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
    for name, spec in outputs.items():
        port_out = _find_port(op.outputs, name)
        for symbol, size in zip(reversed(port_out.shape if port_out else ()), reversed(spec.shape), strict=False):
            if isinstance(symbol, str) and symbol != "...":
                facts.setdefault(_per_tensor(symbol, port_out, name), size)
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
        expected = symbol if isinstance(symbol, int) else bound.setdefault(_per_tensor(symbol, port, name), size)
        if expected != size:
            raise InvalidArgument(
                f"{op.key} input '{name}' is {spec}, its shape must be [{_join(port.shape)}] with {symbol} = {expected}"
            )


def _given(op: Op, port: Port, inputs: Specs) -> list[str]:
    """Names of the inputs that belong to `port`, in order."""
    if not port.variadic:
        return [port.name] if port.name in inputs else []
    return sorted((n for n in inputs if port_of(op, n) is port), key=lambda n: (len(n), n))


def _find_port(ports: Iterable[Port], name: str) -> Port | None:
    for port in ports:
        if re.fullmatch(re.escape(port.name) + r"\d+", name) if port.variadic else port.name == name:
            return port
    return None


def _per_tensor(symbol: str, port: Port | None, name: str) -> str:
    """The name under which `symbol` binds: dimension _K of tensor x3 of a variadic port x is K3."""
    if port is None or not port.variadic or not symbol.startswith("_"):
        return symbol
    return symbol[1:] + name[len(port.name) :]


def _activation_format(op: Op, inputs: Specs) -> Format | None:
    """The format of the first input, in the order of the declaration, that is plain, floating and no weight."""
    for port in op.inputs:
        spec = inputs.get(f"{port.name}0" if port.variadic else port.name)
        if spec is not None and spec.format.kind == "float" and spec.layout == "plain" and "*" not in port.formats:
            return spec.format
    return None


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
        allowed = (float, int) if attr.type is float else attr.type
        if not isinstance(value, allowed) or (isinstance(value, bool) and attr.type is not bool):
            raise InvalidArgument(f"{op.key} attribute {name} = {value!r} must be {attr.type.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidArgument(f"{op.key} attribute {name} = {value!r} must be a finite number")
        if attr.minimum is not None and isinstance(value, (int, float)) and value < attr.minimum:
            raise InvalidArgument(f"{op.key} attribute {name} = {value!r} must be at least {attr.minimum}")
        if attr.choices and value not in attr.choices:
            raise InvalidArgument(f"{op.key} attribute {name} = {value!r}; allowed: {_join(attr.choices)}")
    for attr in op.attrs:
        if attr.required and attrs.get(attr.name) is None:
            raise InvalidArgument(f"{op.key} needs attribute '{attr.name}' ({attr.doc})")


def _names(parts: Iterable[Any]) -> str:
    return ", ".join(p.name for p in parts) or "none"


def _join(parts: Iterable[Any]) -> str:
    return ", ".join(str(p) for p in parts)
