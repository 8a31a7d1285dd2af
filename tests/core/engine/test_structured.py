"""Output held to a grammar: whatever the masks allow must match, judged by `re`, `json` and plain comparison."""

from __future__ import annotations

import json
import random
import re

import pytest

from runtime.engine.files import open_for_engine
from runtime.engine.structured import Grammars, StructuredOutput
from runtime.errors import InvalidArgument, Unsupported
from runtime.tokenizer import Tokenizer

PERSON = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_for_engine(None).tokenizer


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, tokenizer.vocab_size + 8)


def random_output(grammars: Grammars, tokenizer: Tokenizer, structured: StructuredOutput, seed: int) -> str:
    """Tokens drawn from what the masks allow, a little in favour of closing, until the grammar allows an end."""
    draw = random.Random(seed)
    matcher = grammars.matcher(structured)
    token_ids: list[int] = []
    for _ in range(400):
        if matcher.is_stopped:
            break
        allowed = [int(i) for i in matcher.mask().nonzero()[0]]
        assert allowed, "nothing may come next, yet the output is not over"
        ends = [i for i in allowed if i in tokenizer.eos_token_ids]
        closing = [i for i in allowed if tokenizer.token_bytes(i) in (b'"', b"}", b"]")]
        token_id = ends[0] if ends else draw.choice(closing if closing and draw.random() < 0.3 else allowed)
        matcher.advance(token_id)
        if token_id in tokenizer.eos_token_ids:
            break
        token_ids.append(token_id)
    else:
        pytest.fail(f"no end within 400 tokens: {tokenizer.decode(token_ids)!r}")
    return tokenizer.decode(token_ids)


@pytest.mark.parametrize(
    "pattern", [r"\d{3}-[a-f]{2,4}", r"(yes|no|maybe)!?", r"[A-Z][a-z]{1,9} (is|was) [0-9]{1,2}\.", "é{2}ß?"]
)
def test_every_output_that_a_regular_expression_allows_matches_it(
    grammars: Grammars, tokenizer: Tokenizer, pattern: str
) -> None:
    for seed in range(20):
        text = random_output(grammars, tokenizer, StructuredOutput("regex", pattern), seed)
        assert re.fullmatch(pattern, text), text


def test_every_output_that_a_schema_allows_is_such_an_object(grammars: Grammars, tokenizer: Tokenizer) -> None:
    for seed in range(20):
        person = json.loads(random_output(grammars, tokenizer, StructuredOutput("json_schema", PERSON), seed))
        assert set(person) <= {"name", "age", "tags"}
        assert isinstance(person["name"], str)
        assert len(person["name"]) <= 8
        assert 0 <= person["age"] <= 130
        assert set(person.get("tags", [])) <= {"a", "b"}
        assert len(person.get("tags", [])) <= 3


def test_json_object_gives_an_object(grammars: Grammars, tokenizer: Tokenizer) -> None:
    for seed in range(5):
        assert isinstance(json.loads(random_output(grammars, tokenizer, StructuredOutput("json_object"), seed)), dict)


def test_a_choice_gives_one_of_its_strings(grammars: Grammars, tokenizer: Tokenizer) -> None:
    choices = ['say "hi"', "back\\slash", "Paris", "two\nlines"]
    structured = StructuredOutput("choice", json.dumps(choices))
    seen = {random_output(grammars, tokenizer, structured, seed) for seed in range(40)}
    assert seen == set(choices)


def test_gbnf_as_llama_cpp_writes_it(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = 'root ::= greeting " " name # who\ngreeting ::= "Hello" | "\\u00e9t\\u00E9"\nname ::= [a-c]{2,3}\n'
    for seed in range(20):
        text = random_output(grammars, tokenizer, StructuredOutput("gbnf", grammar), seed)
        assert re.fullmatch("(Hello|été) [a-c]{2,3}", text), text


def test_lark(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammar = 'start: number ("+" number)*\nnumber: /[1-9]/\n'
    for seed in range(10):
        text = random_output(grammars, tokenizer, StructuredOutput("lark", grammar), seed)
        assert re.fullmatch(r"[1-9](\+[1-9])*", text), text


def test_no_special_token_is_part_of_an_output_and_padding_of_the_vocabulary_is_closed(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    mask = grammars.matcher(StructuredOutput("regex", "(?s:.*)")).mask()
    assert mask.shape == (tokenizer.vocab_size + 8,)
    allowed = set(mask.nonzero()[0].tolist())
    assert allowed & tokenizer.special_ids <= tokenizer.eos_token_ids
    assert max(allowed) < tokenizer.vocab_size


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"not": {"type": "string"}}', "not"),
        ("json_schema", '{"type": "objekt"}', "objekt"),
        ("json_schema", '{"$ref": "http://example.org/schema"}', "example.org"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", "[1]", "list"),
        ("regex", "(", "unclosed"),
        ("regex", "(?=a)b", "look-around"),
        ("choice", "[]", "one or more"),
        ("choice", '["a", 1]', "strings"),
        ("gbnf", "root = 1", "::="),
        ("gbnf", 'start ::= "a"', "root"),
        ("gbnf", "root ::= missing", "missing"),
        ("lark", "start: missing", "missing"),
        ("lark", "a" * 200_001, "200001 characters"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(grammars: Grammars, kind: str, text: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(why)):
        grammars.check(StructuredOutput(kind, text))  # type: ignore[arg-type]


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="json_schema, regex, choice"):
        StructuredOutput("xml")  # type: ignore[arg-type]


def test_without_llguidance_the_remedy_is_named(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(Unsupported, match=r"hal-runtime\[serve\]"):
        Grammars(tokenizer, tokenizer.vocab_size).check(StructuredOutput("regex", "a"))


def test_deep_nesting_in_a_schema_is_an_error_not_a_crash(grammars: Grammars) -> None:
    deep = '{"items":' * 5000 + "{}" + "}" * 5000
    with pytest.raises(InvalidArgument):
        grammars.check(StructuredOutput("json_schema", deep))
