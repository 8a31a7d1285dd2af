"""Typed look-ups in metadata."""

from __future__ import annotations

import struct

import pytest

from runtime.errors import MalformedFile
from runtime.formats import open_model, optional, optional_list, require, require_list

METADATA = {"int": 3, "float": 0.5, "bool": True, "text": "x", "null": None, "list": [1, 2], "mixed": [1, "a"]}


def test_values_of_the_asked_type_are_returned():
    assert require(METADATA, "int", int) == 3
    assert require(METADATA, "int", float) == 3.0
    assert type(require(METADATA, "int", float)) is float
    assert require(METADATA, "bool", bool) is True
    assert optional(METADATA, "text", str, "y") == "x"
    assert optional(METADATA, "absent", str, "y") == "y"
    assert optional(METADATA, "null", int, 4) == 4
    assert require_list(METADATA, "list", int) == [1, 2]
    assert optional_list(METADATA, "absent", int) is None


@pytest.mark.parametrize(
    ("key", "kind", "message"),
    [
        ("absent", int, "metadata key 'absent' .int. is missing"),
        ("null", int, "metadata key 'null' .int. is missing"),
        ("text", int, "metadata key 'text' is 'x', of type str; expected int"),
        ("bool", int, "metadata key 'bool' is True, of type bool; expected int"),
        ("bool", float, "expected float"),
        ("float", int, "metadata key 'float' is 0.5"),
    ],
)
def test_a_missing_or_mistyped_value_is_refused_with_key_and_value(key, kind, message):
    with pytest.raises(MalformedFile, match=message):
        require(METADATA, key, kind)


def test_lists_are_checked_element_by_element():
    with pytest.raises(MalformedFile, match=r"element 1 of metadata key 'mixed' is 'a'"):
        require_list(METADATA, "mixed", int)
    with pytest.raises(MalformedFile, match=r"metadata key 'text' is 'x'; expected a list of str"):
        require_list(METADATA, "text", str)
    with pytest.raises(MalformedFile, match=r"metadata key 'absent' .list of str. is missing"):
        require_list(METADATA, "absent", str)


def test_lazy_arrays_serve_as_lists(make_gguf, save):
    array = struct.pack("<IQ3i", 5, 3, 7, 8, 9)
    metadata = open_model(save(make_gguf([("k", 9, array), ("u", 9, struct.pack("<IQ2B", 0, 2, 1, 2))]))).metadata
    assert require_list(metadata, "k", int) == [7, 8, 9]
    assert require_list(metadata, "u", float) == [1.0, 2.0]
    assert repr(metadata["k"]) == "LazyArray(int32[3])"
    assert 8 in metadata["k"]
    assert metadata["k"] == metadata["k"]
    with pytest.raises(MalformedFile, match=r"element 0 of metadata key 'k' is 7"):
        require_list(metadata, "k", str)
