"""Patterns of `--place`."""

from __future__ import annotations

import pytest

from runtime.errors import InvalidArgument
from runtime.executor import matches


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("layers.0", "layers.0", True),
        ("layers.0", "layers.0.attention", True),
        ("layers.0", "layers.01", False),
        ("layers.*.mlp", "layers.7.mlp.linear", True),
        ("layers.*.mlp", "layers.7.attention", False),
        ("layers[0:8]", "layers.7.mlp", True),
        ("layers[0:8]", "layers.8.mlp", False),
        ("layers[8:]", "layers.31", True),
        ("layers[8:]", "layers.7", False),
        ("layers[:2]", "layers.1.mlp", True),
        ("layers[2:4].mlp", "layers.3.mlp.glu", True),
        ("layers[2:4].mlp", "layers.3.attention", False),
        ("layers[0:1]", "lm_head", False),
        ("*", "anything", True),
        ("lm_head", "embed", False),
    ],
)
def test_a_pattern_selects_a_node_and_its_parts(pattern, name, expected):
    assert matches(pattern, name) is expected


def test_an_empty_slice_is_refused():
    with pytest.raises(InvalidArgument, match=r"pattern 'layers\[8:8\]' selects nothing"):
        matches("layers[8:8]", "layers.8")
