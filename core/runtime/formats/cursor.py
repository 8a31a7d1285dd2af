"""Reading a GGUF header: every read is checked against the file before anything is allocated."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Container
from pathlib import Path
from typing import Any, Literal

from runtime.errors import MalformedFile
from runtime.formats.metadata import LazyArray, NestedArray, NumberArray, StringArray
from runtime.formats.sniff import DOWNLOAD_AGAIN

MAX_STRING_BYTES = 1 << 28
"""Longest string value; the longest in use are whole tokenizer.json files of some 30 MB."""

MAX_NAME_BYTES = (1 << 16) - 1
"""Longest key, by the GGUF specification; tensor names are held to the same."""

MAX_ELEMENTS = 1 << 24
"""Elements of all arrays of a file together. The largest vocabularies have some 10**6 tokens and merges."""

MAX_NESTED_ARRAYS = 1 << 16
MAX_DEPTH = 8

# value type -> (name, code of the struct module)
SCALARS: dict[int, tuple[str, str]] = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "B"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
STRING, ARRAY = 8, 9


class Cursor:
    """A position in a mapped header, in the file's byte order."""

    def __init__(self, path: Path, view: memoryview, position: int, byte_order: Literal["little", "big"]) -> None:
        self.path = path
        self.view = view
        self.size = len(view)
        self.position = position
        self.byte_order = byte_order
        self.elements_left = MAX_ELEMENTS
        self.nested_left = MAX_NESTED_ARRAYS
        order = "<" if byte_order == "little" else ">"
        self._structs = {code: struct.Struct(order + code) for code in "BbHhIifQqd"}

    def fault(self, what: str, rule: str) -> MalformedFile:
        """An error about `what`, at the current position."""
        return MalformedFile(f"{self.path}: {what} {rule} (at byte {self.position})", remedy=DOWNLOAD_AGAIN)

    def take(self, count: int, what: str) -> int:
        """Move past `count` bytes, which must be there; returns where they begin."""
        start = self.position
        if count > self.size - start:
            raise self.fault(what, f"takes {count} bytes, {self.size - start} are left of the file's {self.size}")
        self.position = start + count
        return start

    def number(self, code: str, what: str) -> Any:
        """One number, `code` as in the struct module."""
        reader = self._structs[code]
        return reader.unpack_from(self.view, self.take(reader.size, what))[0]

    def count(self, what: str, item_bytes: int) -> int:
        """A count of things that take at least `item_bytes` each, which the rest of the file must be able to hold."""
        value = int(self.number("Q", what))
        if value * item_bytes > self.size - self.position:
            raise self.fault(
                what,
                f"is {value}, at least {value * item_bytes} bytes; "
                f"{self.size - self.position} are left of the file's {self.size}",
            )
        return value

    def string(self, what: str, max_bytes: int = MAX_STRING_BYTES) -> str:
        """A string: its length in eight bytes, then UTF-8."""
        length = int(self.number("Q", f"the length of {what}"))
        start = self.take(length, what)
        if length > max_bytes:
            raise self.fault(what, f"has {length} bytes, the limit is {max_bytes}")
        try:
            return str(self.view[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.fault(what, f"is not UTF-8: {error.reason} at its byte {error.start}") from None

    def name(self, what: str, taken: Container[str]) -> str:
        """The name of `what` (a key or a tensor): printable, not empty, and not among `taken`."""
        name = self.string(f"the name of {what}", MAX_NAME_BYTES)
        if not name:
            raise self.fault(what, "has no name")
        if not name.isprintable():  # names are shown in errors and tables, and must not steer a terminal
            raise self.fault(what, f"has the unprintable name {name[:80]!r}")
        if name in taken:
            raise self.fault(what, f"is named '{name[:80]}' a second time")
        return name

    def value(self, value_type: int, what: str) -> Any:
        """A metadata value; arrays are walked over and returned as LazyArray."""
        if value_type == STRING:
            return self.string(what)
        if value_type == ARRAY:
            return self._array(what, 1)
        if value_type not in SCALARS:
            raise self.fault(what, f"has value type {value_type}; GGUF knows 0 to 12")
        name, code = SCALARS[value_type]
        value = self.number(code, what)
        if name == "bool":
            if value > 1:
                raise self.fault(what, f"is {value}, a boolean is 0 or 1")
            return bool(value)
        return value

    def _array(self, what: str, depth: int) -> LazyArray:
        element_type = int(self.number("I", f"the element type of {what}"))
        where = f"{self.path}: {what}"
        if element_type in SCALARS:
            name, code = SCALARS[element_type]
            width = self._structs[code].size
            length = self._length(what, width)
            start = self.take(length * width, what)
            return NumberArray(name, code, self.view[start : self.position], self.byte_order, where)
        if element_type == STRING:
            return self._strings(what, self._length(what, 8), where)
        if element_type != ARRAY:
            raise self.fault(what, f"has elements of type {element_type}; GGUF knows 0 to 12")
        if depth == MAX_DEPTH:
            raise self.fault(what, f"nests arrays more than {MAX_DEPTH} deep")
        length = self._length(what, 12)
        self.nested_left -= length
        if self.nested_left < 0:
            raise self.fault(what, f"holds {length} arrays; a file may hold {MAX_NESTED_ARRAYS} nested arrays in all")
        return NestedArray([self._array(f"{what}[{i}]", depth + 1) for i in range(length)], where)

    def _length(self, what: str, element_bytes: int) -> int:
        length = self.count(f"the length of {what}", element_bytes)
        self.elements_left -= length
        if self.elements_left < 0:
            raise self.fault(what, f"has {length} elements; a file's arrays may hold {MAX_ELEMENTS} in all")
        return length

    def _strings(self, what: str, length: int, where: str) -> StringArray:
        """Walk over `length` strings, noting where each begins.

        The only long loop of opening a file (0.1 microseconds a string), hence the local names. A length beyond the
        file makes the next read fail, so one check after the loop is enough.
        """
        first = self.position
        view, unpack = self.view, self._structs["Q"].unpack_from
        starts = array("Q")
        note = starts.append
        position = first
        try:
            for _ in range(length):
                note(position - first)
                position += 8 + unpack(view, position)[0]
        except (struct.error, OverflowError):  # beyond the file; beyond what an index can be
            position = self.size + 1
        if position > self.size:
            raise self.fault(what, f"has string {len(starts) - 1} reaching beyond the file's {self.size} bytes")
        self.position = position
        return StringArray(view[first:position], starts, where, self.byte_order)
