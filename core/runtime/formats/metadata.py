"""Metadata values: arrays that are materialised on first use, and typed look-ups."""

from __future__ import annotations

import sys
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from runtime.errors import MalformedFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")

BULK_STRINGS = 1024
"""From this many strings on, splitting all of them at once beats a loop, even with numpy still to be called."""


class LazyArray(Sequence[Any]):
    """An array in a file's metadata; its elements are read when the first is asked for, and kept.

    It compares equal to a list or LazyArray with equal elements. `element` names the element type as in
    GGUF: uint8 .. float64, bool, string, array.
    """

    __slots__ = ("_items", "_len", "element", "where")

    def __init__(self, element: str, length: int, where: str) -> None:
        self.element = element
        self.where = where
        self._len = length
        self._items: list[Any] | None = None

    @abstractmethod
    def _read(self) -> list[Any]: ...

    def tolist(self) -> list[Any]:
        """The elements; the same list every time, which callers must not change."""
        if self._items is None:
            self._items = self._read()
        return self._items

    def __len__(self) -> int:
        return self._len

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.tolist()[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def __contains__(self, value: object) -> bool:
        return value in self.tolist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, LazyArray):
            return self.tolist() == other.tolist()
        return self.tolist() == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # mutable-looking sequence, like list

    def __repr__(self) -> str:
        return f"LazyArray({self.element}[{self._len}])"


class NumberArray(LazyArray):
    """Numbers or booleans, stored back to back as `code` of the struct module."""

    __slots__ = ("_code", "_swapped", "_view")

    def __init__(self, element: str, code: str, view: memoryview, byte_order: str, where: str) -> None:
        self._code = code
        self._view = view
        self._swapped = byte_order != sys.byteorder
        super().__init__(element, len(view) // array(code).itemsize, where)

    def _read(self) -> list[Any]:
        if self.element == "bool":
            if self._len and max(self._view) > 1:
                bad = next(i for i, value in enumerate(self._view) if value > 1)
                raise MalformedFile(f"{self.where}: element {bad} is {self._view[bad]}, a boolean is 0 or 1")
            return [value == 1 for value in self._view]
        values = array(self._code, self._view.tobytes())
        if self._swapped:
            values.byteswap()
        return values.tolist()

    def as_numpy(self) -> NDArray[Any]:
        """The elements as an array of their own type, in native byte order."""
        import numpy as np

        if self.element == "bool":
            return np.array(self.tolist(), dtype=np.bool_)
        values = np.frombuffer(self._view, dtype=np.dtype(self._code))
        return values.byteswap() if self._swapped else values


class StringArray(LazyArray):
    """UTF-8 strings, each preceded by its length in eight bytes, which lies at `starts[i]` of `view`."""

    __slots__ = ("_byte_order", "_starts", "_view")

    def __init__(self, view: memoryview, starts: array[int], where: str, byte_order: str) -> None:
        self._view = view
        self._byte_order = byte_order
        self._starts = starts
        super().__init__("string", len(starts), where)

    def raw(self) -> list[bytes]:
        """The strings as bytes, whether or not they are valid UTF-8."""
        blob, starts = self._view.tobytes(), self._starts
        stops = [*starts[1:], len(blob)]
        return [blob[start + 8 : stop] for start, stop in zip(starts, stops)]

    def extents(self) -> tuple[memoryview, array[int]]:
        """Bytes of the whole array, and where each string's eight bytes of length lie; the string itself follows."""
        return self._view, self._starts

    def _read(self) -> list[Any]:
        if self._len >= BULK_STRINGS:
            strings = self._read_in_bulk()
            if strings is not None:
                return strings
        items = self.raw()
        try:
            return [item.decode() for item in items]
        except UnicodeDecodeError:
            raise self._refuse(items) from None

    def check(self) -> None:
        """Raise MalformedFile for a string that is not UTF-8, without making any."""
        if self._decode_in_bulk() is None:
            self._read()  # the loop knows the string, if it is not just one that holds a NUL

    def _read_in_bulk(self) -> list[str] | None:
        decoded = self._decode_in_bulk()
        return None if decoded is None else decoded.split("\0" * 8)[1:]

    def _decode_in_bulk(self) -> str | None:
        """All strings by one decode, about twice as fast with one split as a loop.

        Every length field is overwritten with eight NULs, which then separate the strings. That is exact as long as
        no string holds a NUL and the bytes are valid UTF-8 (a character cannot span a NUL); otherwise None.
        """
        import numpy as np

        blob = np.frombuffer(self._view, dtype=np.uint8).copy()
        starts = np.frombuffer(self._starts, dtype=np.uint64).astype(np.intp)
        longest = int(np.diff(starts, append=blob.size).max()) - 8
        for byte in range((longest.bit_length() + 7) // 8):  # the higher bytes of every length are zero already
            blob[starts + (byte if self._byte_order == "little" else 7 - byte)] = 0
        if blob.size - np.count_nonzero(blob) != 8 * self._len:
            return None
        try:
            return str(blob.data, "utf-8")
        except UnicodeDecodeError:
            return None  # the loop finds the string and reports it

    def _refuse(self, items: list[bytes]) -> MalformedFile:
        for index, item in enumerate(items):
            try:
                item.decode()
            except UnicodeDecodeError as error:
                return MalformedFile(
                    f"{self.where}: string {index} is not UTF-8 ({error.reason} at byte {error.start})"
                )
        raise AssertionError("called for a list whose strings are all valid")


class NestedArray(LazyArray):
    """Arrays of arrays."""

    __slots__ = ("_children",)

    def __init__(self, children: list[LazyArray], where: str) -> None:
        self._children = children
        super().__init__("array", len(children), where)

    def _read(self) -> list[Any]:
        return list(self._children)


def _check(where: str, value: Any, kind: type[T]) -> T:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise MalformedFile(f"{where} is {value!r:.80}, of type {type(value).__name__}; expected {kind.__name__}")


def require(metadata: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """The value of `key`, which must be there and a `kind`; an integer serves as a float, a boolean never as an int."""
    if metadata.get(key) is None:
        raise MalformedFile(
            f"metadata key '{key}' ({kind.__name__}) is missing", remedy="convert the model again with a current tool"
        )
    return _check(f"metadata key '{key}'", metadata[key], kind)


def optional(metadata: Mapping[str, Any], key: str, kind: type[T], default: T) -> T:
    """The value of `key`, or `default` when it is absent or null; a value of another type raises MalformedFile."""
    return default if metadata.get(key) is None else require(metadata, key, kind)


def require_list(metadata: Mapping[str, Any], key: str, kind: type[T]) -> list[T]:
    """The array `key` as a list whose elements are all of `kind`."""
    value = metadata.get(key)
    if value is None:
        raise MalformedFile(
            f"metadata key '{key}' (list of {kind.__name__}) is missing",
            remedy="convert the model again with a current tool",
        )
    if isinstance(value, LazyArray):
        if value.element == kind_of_element.get(kind):
            return value.tolist()
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise MalformedFile(f"metadata key '{key}' is {value!r:.80}; expected a list of {kind.__name__}")
    return [_check(f"element {i} of metadata key '{key}'", item, kind) for i, item in enumerate(value)]


def optional_list(metadata: Mapping[str, Any], key: str, kind: type[T]) -> list[T] | None:
    """As `require_list`, or None when the key is absent or null."""
    return None if metadata.get(key) is None else require_list(metadata, key, kind)


# Element types whose every element is of the Python type, so that no element needs a look.
kind_of_element: dict[type, str] = {str: "string", float: "float32", bool: "bool", int: "int32"}
