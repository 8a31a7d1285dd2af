"""Dataclasses that cross the pipe in every step: pickled by their values, without the names of their fields."""

from __future__ import annotations

from typing import Any


class Lean:
    """Base of dataclasses whose fields are all set by their `__init__`; both ends run the same version."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), *self.__dict__.values())


def _restore(kind: type[Any], *values: Any) -> Any:
    item = object.__new__(kind)
    item.__dict__.update(zip(kind.__dataclass_fields__, values))
    return item
