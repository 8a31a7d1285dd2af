"""How lines, tables and sizes look."""

from __future__ import annotations

import json
import math

import pytest

from runtime.cli.output import emit, human_bytes, human_count, plural, table, wrap


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 KB"),
        (123_456, "123 KB"),
        (4_200_000, "4.20 MB"),
        (23_400_000_000_000, "23400 GB"),
    ],
)
def test_sizes_are_decimal(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_numbers_of_parameters_are_rounded_from_a_million_on() -> None:
    assert [human_count(n) for n in (35_296, 3_590_000, 1_235_814_400)] == ["35,296", "3.59 million", "1.24 billion"]
    assert [plural(1, "layer"), plural(2, "layer")] == ["1 layer", "2 layers"]


def test_lists_of_facts_are_broken_between_facts() -> None:
    facts = " · ".join(f"fact number {i}" for i in range(12))
    lines = wrap(facts, first="label  ").splitlines()
    assert lines[0].startswith("label  fact number 0 · ")
    assert lines[1].startswith("       fact number ")
    assert all(len(line) <= 120 for line in lines)


def test_columns_align_whatever_their_colours() -> None:
    assert table([("a", "\x1b[32mok\x1b[0m", "x"), ("bbb", "refused", "y")]) == (
        "a    \x1b[32mok\x1b[0m       x\nbbb  refused  y"
    )


def test_what_json_does_not_have_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": [{"logprob": -math.inf}, (math.nan, 1.5)], "b": {"c": math.inf}, "d": "ü"})

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    line = capsys.readouterr().out
    expected = {"a": [{"logprob": None}, [None, 1.5]], "b": {"c": None}, "d": "ü"}
    assert json.loads(line, parse_constant=refuse) == expected
    assert "ü" in line
