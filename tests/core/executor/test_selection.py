"""Patterns of `--place`."""

from __future__ import annotations

import pytest

from runtime.errors import InvalidArgument
from runtime.executor import check_rules, matches


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


NAMES = ["embed", *(f"layers.{i}.{part}" for i in range(5) for part in ("attention", "mlp.glu")), "norm", "lm_head"]


@pytest.mark.parametrize(
    "rules",
    [
        "",
        "*=a",
        "layers[0:2]=a layers[2:]=b",
        "layers[2:]=b layers[0:2]=a",
        "layers[:2]=a layers[2:4]=b layers[4:]=a lm_head=b",
        "layers[1:3]=a",
        "layers[0:2]=a layers[4:5]=b *=a",
        "layers[0:2].mlp=a layers[1:5].attention=b",
        "layers.0=a layers.0.mlp=b",
        "layers[0:8]=a layers[8:]=b",
        "layers[5:]=a",
        "layers[0:2]=a layers[3:]=b",
    ],
)
def test_rules_that_can_be_meant_pass(rules):
    check_rules([tuple(rule.split("=")) for rule in rules.split()], NAMES)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("lyers[0:2]=a", "placement 'lyers[0:2]=a' selects nothing: the nodes are embed, layers, norm, lm_head, and"),
        (
            "layers[2]=a",
            "'layers[2]=a' selects nothing: .* a slice is written as layers[4:8], a single part as layers.4;",
        ),
        ("layers[:2].q=a", "selects nothing: there are layers.0 to layers.4, and no node in them is called .q"),
        (
            "layers[0:3]=a layers[2:]=b",
            "'layers[0:3]=a' and 'layers[2:]=b' both take layers.2; slices must not overlap: let the second begin",
        ),
        ("layers[4:]=a layers[7:9]=b", "'layers[4:]=a' and 'layers[7:9]=b' both take layers.7"),
    ],
)
def test_rules_that_can_hardly_be_meant_are_refused(rules, message):
    pattern = message.replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(InvalidArgument, match=pattern):
        check_rules([tuple(rule.split("=")) for rule in rules.split()], NAMES)
