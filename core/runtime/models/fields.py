"""Typed reading of model metadata: a value of the wrong kind is a malformed file, named with its key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.errors import MalformedFile, Unsupported

_MISSING: Any = object()


class Fields:
    """Reads numbers, strings and lists out of plain data; `where` names the file's part in errors."""

    def __init__(self, data: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.data = data
        self.where = where
        self.prefix = prefix

    def has(self, key: str) -> bool:
        """Whether the key exists and is not null."""
        return self.data.get(self.prefix + key) is not None

    def raw(self, key: str, default: Any = _MISSING) -> Any:
        """The value as it is; a missing key without default is an error."""
        value = self.data.get(self.prefix + key)
        if value is None:
            if default is _MISSING:
                raise MalformedFile(f"{self.where} has no '{self.prefix}{key}', which a model of this kind needs")
            return default
        return value

    def integer(self, key: str, default: Any = _MISSING, least: int = 1, most: int = 2**31 - 1) -> int:
        """A whole number from `least` to `most`; a list of equal numbers counts as that number."""
        value = self._one(key, self.raw(key, default))
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or not least <= value <= most:
            raise self._wrong(key, value, f"a whole number from {least} to {most}")
        return int(value)

    def number(self, key: str, default: Any = _MISSING) -> float:
        """A finite number."""
        value = self._one(key, self.raw(key, default))
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise self._wrong(key, value, "a finite number")
        return float(value)

    def positive(self, key: str, default: Any = _MISSING) -> float:
        """A finite number above zero."""
        value = self.number(key, default)
        if value <= 0:
            raise self._wrong(key, value, "above zero")
        return value

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        """True or false."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: Any = _MISSING) -> str:
        """A string."""
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def numbers(self, key: str, length: int | None = None) -> tuple[float, ...]:
        """A list of numbers, of the given length where one is given."""
        values = self.items(key, length)
        if not all(isinstance(v, int | float) for v in values):
            raise self._wrong(key, values, "a list of numbers")
        return tuple(float(v) for v in values)

    def items(self, key: str, length: int | None = None, default: Any = _MISSING) -> Sequence[Any]:
        """A list, of the given length where one is given."""
        value = self.raw(key, default)
        if not _is_list(value) or (length is not None and len(value) != length):
            raise self._wrong(key, value, "a list" if length is None else f"a list of {length} values")
        found: Sequence[Any] = value
        return found

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Nested fields; empty where there are none."""
        value = self.raw(key, {})
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object with fields")
        return value

    def _one(self, key: str, value: Any) -> Any:
        if not _is_list(value):
            return value
        distinct = set(map(repr, value))
        if not distinct:
            raise self._wrong(key, value, "a number, or a list of one number per layer")
        if len(distinct) != 1:
            raise Unsupported(
                f"{self.where}: '{self.prefix}{key}' differs between layers ({', '.join(sorted(distinct)[:5])}); "
                "models whose layers have different sizes are not supported"
            )
        return value[0]

    def _wrong(self, key: str, value: Any, rule: str) -> MalformedFile:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return MalformedFile(f"{self.where}: '{self.prefix}{key}' is {shown}; it must be {rule}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
