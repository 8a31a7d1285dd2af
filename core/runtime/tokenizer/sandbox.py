"""The environment in which a chat template runs: jinja2's sandbox, with limits on steps, time and sizes.

A template comes with a model file and is not trusted. jinja2's immutable sandbox keeps it from attributes that lead
into the interpreter. What the sandbox leaves open is exhaustion, so every loop iteration and macro call is counted,
and every operation that can multiply a size is checked before it runs.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, missing

__all__ = ["BUDGET_NAME", "Budget", "LimitExceeded", "TemplateEnvironment", "TemplateRefusal"]

BUDGET_NAME = "runtime budget"
"""The render variable that holds the budget; with its space it is no name that a template can write."""

_COUNTED, _JOINED = "runtime counted", "runtime joined"
_WIDTH_METHODS = frozenset(("center", "expandtabs", "ljust", "rjust", "zfill"))
_WIDE_FORMAT = re.compile(r"\d{5,}|\*|\{[^}]*\{")
_MAX_INTEGER_BITS = 4096


class TemplateRefusal(jinja2.TemplateError):
    """The template called `raise_exception`."""


class LimitExceeded(jinja2.TemplateError):
    """The template used up its steps, its time or its size."""


@dataclass
class Budget:
    """What one rendering may still use."""

    max_chars: int
    max_steps: int
    max_seconds: float
    steps: int = 0
    started: float = 0.0

    def start(self) -> Budget:
        """A fresh budget of the same size, its clock running."""
        return Budget(self.max_chars, self.max_steps, self.max_seconds, started=time.monotonic())

    def tick(self) -> None:
        """Count one iteration or call."""
        self.steps += 1
        if self.steps > self.max_steps:
            raise LimitExceeded(f"it ran more than {self.max_steps} loop steps and macro calls")
        if time.monotonic() - self.started > self.max_seconds:
            raise LimitExceeded(f"it ran longer than {self.max_seconds:g} s")

    def check_size(self, size: int) -> None:
        """Refuse a text or list of more than `max_chars` elements before it is made."""
        if size > self.max_chars:
            raise LimitExceeded(f"it asked for a text or list of {size} elements; the limit is {self.max_chars}")


class _StrictNames(jinja2.Undefined):
    """Printing a variable that nobody passed is an error; a missing key of a message prints nothing.

    Templates rely on the second (`message.content` of a tool call); the first is always a mistake.
    """

    __slots__ = ()

    def __str__(self) -> str:
        if self._undefined_obj is missing:
            self._fail_with_undefined_error()
        return ""


class _Counted:
    """An iterable that counts its steps."""

    def __init__(self, items: Iterable[Any], budget: Budget) -> None:
        self._items = items
        self._budget = budget

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._budget.tick()
            yield item

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]  # unsized: TypeError, which jinja2's loop expects


class _Namespace(Namespace):
    """`namespace()` without underscored names, which could shadow what the interpreter looks up."""

    def __init__(self, /, *args: Any, **values: Any) -> None:
        values = dict(*args, **values)
        for name in values:
            _check_name(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; here it prints its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as a plain attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's immutable sandbox, set up as transformers sets it up, and limited."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=_StrictNames,
            optimized=False,  # constant expressions are not worked out while compiling, where no budget counts
            extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
        )
        for name in ("batch", "center", "indent", "slice"):
            self.filters[name] = _limited(self.filters[name], _check_width)
        self.filters["replace"] = _limited(self.filters["replace"], _check_replace)
        self.filters["join"] = _limited(self.filters["join"], _check_join)
        self.filters["format"] = _limited(self.filters["format"], _check_format)
        self.filters["tojson"] = _to_json
        self.filters[_COUNTED] = _counted
        self.filters[_JOINED] = _joined
        self.globals.pop("lipsum")
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=lambda format: now().strftime(format),
            dict=lambda *args, **values: dict(*args, **values),
            namespace=_Namespace,
        )

    def compile_counted(self, source: str) -> jinja2.Template:
        """The template, with every loop, macro and concatenation counted."""
        tree = self.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = self._filter(loop.iter, _COUNTED)
        macros: list[nodes.Macro | nodes.CallBlock] = [*tree.find_all(nodes.Macro), *tree.find_all(nodes.CallBlock)]
        for macro in macros:
            tick = self._filter(nodes.Const(None, lineno=macro.lineno), _COUNTED)
            macro.body.insert(0, nodes.ExprStmt(tick, lineno=macro.lineno))
        self._count_concatenations(tree)
        tree.set_environment(self)
        return self.from_string(tree)

    def _filter(self, node: nodes.Node, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def _count_concatenations(self, node: nodes.Node) -> None:
        for field, value in node.iter_fields():
            children = value if isinstance(value, list) else [value]
            for index, child in enumerate(children):
                if not isinstance(child, nodes.Node):
                    continue
                self._count_concatenations(child)
                if isinstance(child, nodes.Concat):
                    parts = nodes.List(child.nodes, lineno=child.lineno)
                    if isinstance(value, list):
                        value[index] = self._filter(parts, _JOINED)
                    else:
                        setattr(node, field, self._filter(parts, _JOINED))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """One of `+ * ** %`, after a look at how large its result would be."""
        budget = _budget(context)
        if operator == "+" and _is_sized(left) and _is_sized(right):
            budget.check_size(len(left) + len(right))
        elif operator == "*":
            for items, count in ((left, right), (right, left)):
                if _is_sized(items) and isinstance(count, int):
                    budget.check_size(len(items) * count)
        elif operator == "%" and isinstance(left, str):
            _check_format(budget, left)
        if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_INTEGER_BITS:
                raise LimitExceeded(f"it asked for an integer of {bits} bits; the limit is {_MAX_INTEGER_BITS}")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call `function`, after a look at how large a text a string method would make."""
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        text = getattr(method, "__self__", None)
        if isinstance(text, str):
            _check_method(_budget(context), text, method.__name__, args, kwargs)
        return super().call(context, function, *args, **kwargs)


def _budget(context: Context) -> Budget:
    budget = context.resolve(BUDGET_NAME)
    assert isinstance(budget, Budget)
    return budget


def _is_sized(value: Any) -> bool:
    return isinstance(value, (str, list, tuple))


@jinja2.pass_context
def _counted(context: Context, items: Any) -> Any:
    """A loop's iterable, or None for the call of a macro."""
    budget = _budget(context)
    if items is None:
        budget.tick()
        return None
    return _Counted(items, budget)


@jinja2.pass_context
def _joined(context: Context, parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    _budget(context).check_size(sum(map(len, texts)))
    return "".join(texts)


def _raise_exception(message: object) -> None:
    raise TemplateRefusal(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as transformers writes it in templates: not escaped for HTML, letters of all scripts as they are."""
    if isinstance(indent, int) and indent > 64:
        raise LimitExceeded(f"it asked for JSON indented by {indent}; the limit is 64")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _limited(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """The filter, after `check(budget, *its arguments)`."""
    passed = getattr(function, "jinja_pass_arg", None)

    @functools.wraps(function)
    def limited(context: Context, *args: Any, **kwargs: Any) -> Any:
        check(_budget(context), *args, **kwargs)
        if passed is None:
            return function(*args, **kwargs)
        return function(context.environment if passed.name == "environment" else context.eval_ctx, *args, **kwargs)

    return jinja2.pass_context(limited)


def _check_width(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    lines = value.count("\n") + 1 if isinstance(value, str) else 1
    for size in (*args, *kwargs.values()):
        if isinstance(size, int):
            budget.check_size(size * lines)


def _check_replace(budget: Budget, text: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    budget.check_size(len(text) + text.count(old) * len(new))


def _check_join(budget: Budget, items: Any, d: Any = "", *_: Any, **__: Any) -> None:
    if isinstance(items, (list, tuple)):
        budget.check_size(sum(len(item) if isinstance(item, str) else 1 for item in items) + len(str(d)) * len(items))


def _check_format(budget: Budget, text: Any, *_: Any, **__: Any) -> None:
    if _WIDE_FORMAT.search(str(text)):
        raise LimitExceeded("it formats with a width of more than 9999, or with one that it computes")


def _check_method(budget: Budget, text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if name in _WIDTH_METHODS:
        tabs = text.count("\t") if name == "expandtabs" else 1
        budget.check_size(max((size for size in (*args, *kwargs.values()) if isinstance(size, int)), default=8) * tabs)
    elif name == "replace" and len(args) >= 2:
        _check_replace(budget, text, *args)
    elif name == "join" and args:
        _check_join(budget, args[0], text)
    elif name in ("format", "format_map"):
        _check_format(budget, text)
