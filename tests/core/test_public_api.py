"""The contract changes only on purpose: what `runtime.backend` exports is compared with a written snapshot.

Run this file as a program to write the snapshot anew.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import runtime.backend

SNAPSHOT = Path(__file__).with_name("public_api.txt")
HOW_TO = """
The public API of runtime.backend is not what tests/core/public_api.txt says (first difference above).
If that was not intended, undo it: plugins of other people depend on every line.
If it was, then
  - an addition (with a default) raises API_LEVEL by one, unless no release has this level yet;
  - a removal or a change of meaning is a new API_MAJOR, and the old one is served beside it;
  - write the snapshot anew with `python tests/core/test_public_api.py`, and say so in CHANGELOG.md.
"""


def describe_api() -> Iterator[str]:
    """One line per name, field, method and default."""
    module = runtime.backend
    for name in sorted(module.__all__):
        value = getattr(module, name)
        if inspect.isclass(value):
            yield from describe_class(name, value)
        elif callable(value) and hasattr(value, "__code__"):
            yield f"def {name}{signature(value)}"
        elif isinstance(value, (int, str)):
            yield f"{name} = {value!r}"
        else:
            yield f"{name}: {type(value).__name__}"


def describe_class(name: str, cls: type) -> Iterator[str]:
    bases = ", ".join(b.__name__ for b in cls.__bases__ if b.__module__.startswith("runtime"))
    yield f"class {name}" + (f"({bases})" if bases else "")
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            yield f"    {field.name}: {field.type}{default_of(field)}"
    elif issubclass(cls, Exception):
        yield f"    code = {cls.code!r}, scope = {cls.scope!r}, retryable = {cls.retryable!r}"  # type: ignore[attr-defined]
    for member, value in sorted(vars(cls).items()):
        if member.startswith("_") and member != "__init__":
            continue
        if isinstance(value, property):
            yield f"    property {member} -> {value.fget.__annotations__.get('return')}"
        elif isinstance(value, (staticmethod, classmethod)):
            yield f"    {type(value).__name__} {member}{signature(value.__func__)}"
        elif inspect.isfunction(value) and not is_generated(cls, value):
            yield f"    def {member}{signature(value)}"


def is_generated(cls: type, function: Any) -> bool:
    """Whether dataclasses or typing wrote this method."""
    return function.__name__ == "_no_init_or_replace_init" or (
        function.__name__ == "__init__" and dataclasses.is_dataclass(cls)
    )


def default_of(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f" = {getattr(field.default_factory, '__name__', 'factory')}()"
    return "" if field.default is dataclasses.MISSING else f" = {literal(field.default)}"


def signature(function: Any) -> str:
    parts, star = [], False
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        prefix = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        annotation = "" if p.annotation is p.empty else f": {p.annotation}"
        default = "" if p.default is p.empty else f" = {literal(p.default)}"
        parts.append(f"{prefix}{p.name}{annotation}{default}")
    returns = function.__annotations__.get("return")
    return f"({', '.join(parts)})" + (f" -> {returns}" if returns else "")


def literal(value: Any) -> str:
    """A default as it is written; objects without a literal by their type, since their repr holds an address."""
    if value is None or isinstance(value, (int, float, str, bytes, tuple)):
        return repr(value)
    return f"<{type(value).__name__}>"


def test_the_public_api_is_what_the_snapshot_says() -> None:
    written, present = SNAPSHOT.read_text("utf-8").splitlines(), list(describe_api())
    gone = [f"- {line}" for line in written if line not in present]
    new = [f"+ {line}" for line in present if line not in written]
    assert written == present, "\n".join([*gone, *new, HOW_TO])


def test_every_exported_name_is_documented() -> None:
    undocumented = [
        name
        for name in runtime.backend.__all__
        if callable(getattr(runtime.backend, name)) and not getattr(runtime.backend, name).__doc__
    ]
    assert undocumented == []


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(describe_api()) + "\n", "utf-8")
    sys.stdout.write(f"wrote {SNAPSHOT}\n")
