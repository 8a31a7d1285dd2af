"""The decorator `kernel` and what follows from it: a manifest rule per kernel, checked against its operation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from runtime.backend.manifest import Condition, Numerics, OneOf, Range, Rule
from runtime.errors import InvalidArgument
from runtime.graph import Node
from runtime.ops import CATALOGUE, Catalogue, Op
from runtime.ops.shapes import port_of

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "_runtime_kernels"


@dataclass(frozen=True)
class Declaration:
    """What stands in `@kernel(...)`."""

    op_key: str
    conditions: Mapping[str, Any]
    numerics: Numerics
    flags: frozenset[str]
    preference: int


def kernel(
    op_key: str,
    *,
    numerics: Numerics | None = None,
    flags: Sequence[str] = (),
    preference: int = 0,
    **conditions: Any,
) -> Callable[[F], F]:
    """Make a method of a `KernelBackend` the kernel of the operation `op_key`, e.g. "linear@1".

    The method takes inputs and attributes of the operation by name and returns its output, or a tuple of them.
    An optional input or an attribute that it has no parameter for must be absent, or have its default.

    conditions  <input>=("f32", "q8_0")     formats of an input
                <dimension>=(1, 4096)       inclusive bounds of a dimension of the operation; or a Range, for a step
                <attribute>=("silu",)       values of an attribute; or a Range
    numerics    what the kernel really computes with
    flags       deterministic, batch_invariant, capturable
    preference  among several kernels that fit, the highest is taken

    Several decorators on one method declare several rules.
    """

    def mark(function: F) -> F:
        declaration = Declaration(op_key, conditions, numerics or Numerics(), frozenset(flags), preference)
        declared: list[Declaration] = getattr(function, _MARK, [])
        setattr(function, _MARK, [*declared, declaration])
        return function

    return mark


@dataclass(frozen=True, eq=False)
class Kernel:
    """A method of a backend, the rule that says what it can do, and which arguments it takes."""

    name: str
    op: Op
    rule: Rule
    function: Callable[..., Any]
    parameters: frozenset[str]
    needs_value: frozenset[str]
    takes_any: bool

    def arguments(self, node: Node, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments for one call; inputs of a variadic port come as a list under the port's name."""
        given: dict[str, Any] = dict.fromkeys(self.needs_value)
        for port in self.op.inputs:
            if port.variadic and port.name in self.parameters:
                count = sum(port_of(self.op, name) is port for name in inputs)
                given[port.name] = [inputs[f"{port.name}{i}"] for i in range(count)]
        for name, value in {**inputs, **node.attrs}.items():
            if name in self.parameters or self.takes_any:
                given[name] = value
        return given


def kernels_of(backend: object, catalogue: Catalogue = CATALOGUE) -> list[Kernel]:
    """The kernels of a backend, in the order of their definition, base classes first.

    A subclass that redefines a method without the decorator, or sets it to None, takes the kernel away.
    Raises InvalidArgument where a declaration does not fit its operation.
    """
    cls = type(backend)
    names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
    return [
        _make_kernel(backend, name, declaration, catalogue)
        for name in names
        for declaration in getattr(getattr(cls, name, None), _MARK, ())
    ]


def _make_kernel(backend: object, method: str, declaration: Declaration, catalogue: Catalogue) -> Kernel:
    name = f"{type(backend).__name__}.{method}"
    if declaration.op_key not in catalogue:
        raise InvalidArgument(f"kernel {name} is for '{declaration.op_key}', which is no known operation")
    op = catalogue[declaration.op_key]
    function = getattr(backend, method)
    signature = inspect.signature(function).parameters
    named = {p.name: p for p in signature.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    known = [p.name for p in op.inputs] + [a.name for a in op.attrs]
    for parameter in named:
        if parameter not in known:
            raise InvalidArgument(
                f"kernel {name} has a parameter '{parameter}', which {op.key} does not know; it has {', '.join(known)}"
            )
    when = [_condition(name, op, key, wanted) for key, wanted in declaration.conditions.items()]
    if not takes_any:
        when += _conditions_of_absence(name, op, set(named))
    return Kernel(
        name=name,
        op=op,
        rule=Rule(op.key, tuple(when), declaration.numerics, declaration.flags, declaration.preference),
        function=function,
        parameters=frozenset(named),
        needs_value=frozenset(p.name for p in named.values() if p.default is p.empty),
        takes_any=takes_any,
    )


def _condition(name: str, op: Op, key: str, wanted: Any) -> Condition:
    ports = {p.name for p in op.inputs} | {p.name for p in op.outputs}
    attrs = {a.name for a in op.attrs}
    dims = {d for p in (*op.inputs, *op.outputs) for d in p.shape if isinstance(d, str) and d != "..."}
    if key in ports and not isinstance(wanted, Range):
        return OneOf(f"{key}.format", _values(wanted))
    if key in attrs | dims:
        if isinstance(wanted, Range):
            return replace(wanted, fact=key)
        if key in attrs:
            return OneOf(key, _values(wanted))
        if isinstance(wanted, int):
            return Range(key, wanted, wanted)
        if isinstance(wanted, tuple) and len(wanted) == 2:
            return Range(key, *wanted)
    raise InvalidArgument(
        f"kernel {name}: {key}={wanted!r} is no condition on {op.key}; it has the inputs and outputs "
        f"{', '.join(sorted(ports))}, dimensions {', '.join(sorted(dims))}, "
        f"attributes {', '.join(sorted(attrs)) or '-'}"
    )


def _conditions_of_absence(name: str, op: Op, named: set[str]) -> list[Condition]:
    conditions: list[Condition] = []
    for port in op.inputs:
        if port.name in named:
            continue
        if not port.optional:
            raise InvalidArgument(f"kernel {name} has no parameter '{port.name}', an input that {op.key} always has")
        conditions.append(OneOf(f"has.{port.name}", (False,)))
    for attr in op.attrs:
        if attr.name in named:
            continue
        if attr.required:
            raise InvalidArgument(
                f"kernel {name} has no parameter '{attr.name}', an attribute that {op.key} always has"
            )
        conditions.append(OneOf(attr.name, (attr.default,)))
    return conditions


def _values(wanted: Any) -> tuple[Any, ...]:
    return tuple(wanted) if isinstance(wanted, (tuple, list, set, frozenset)) else (wanted,)
