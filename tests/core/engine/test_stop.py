"""Stop strings never leak across a chunk border."""

from __future__ import annotations

import random

import pytest

from runtime.engine.stop import StopChecker


def feed(stop: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    checker = StopChecker(stop)
    shown = []
    for piece in pieces:
        shown.append(checker.push(piece))
        if checker.matched is not None:
            return shown, checker.matched
    return [*shown, checker.flush()], None


def test_a_stop_string_over_three_pieces_is_never_shown() -> None:
    assert feed(["<end>"], ["Paris", ". <", "en", "d> and more"]) == (["Paris", ". ", "", ""], "<end>")


def test_text_that_only_looked_like_a_stop_string_is_let_out() -> None:
    assert feed(["<end>"], ["a<en", "ter>"]) == (["a", "<enter>", ""], None)


def test_held_text_appears_at_the_end() -> None:
    assert feed(["stop"], ["we st"]) == (["we ", "st"], None)


def test_the_earliest_match_wins_and_its_text_is_dropped() -> None:
    assert feed(["two", "one"], ["zero one two"]) == (["zero "], "one")


def test_a_stop_string_that_is_included_is_shown_whole_or_not_at_all() -> None:
    checker = StopChecker(["<end>"], include=True)
    assert [checker.push(piece) for piece in ("Paris", ". <", "en", "d> and more", "x")] == [
        "Paris",
        ". ",
        "",
        "<end>",
        "",
    ]
    assert checker.matched == "<end>"


def test_nothing_comes_after_a_match() -> None:
    checker = StopChecker(["x"])
    assert checker.push("axb") == "a"
    assert checker.push("more") == ""
    assert checker.flush() == ""


@pytest.mark.parametrize("seed", range(20))
def test_the_text_up_to_the_stop_is_the_same_however_it_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice("abc") for _ in range(200))
    stop = ["abca", "ccb"]
    ends = [text.find(s) for s in stop if s in text]
    expected = text[: min(ends)] if ends else text
    pieces = []
    rest = text
    while rest:
        n = rng.randint(1, 4)
        pieces.append(rest[:n])
        rest = rest[n:]
    shown, _ = feed(stop, pieces)
    assert "".join(shown) == expected
