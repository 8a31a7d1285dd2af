"""Output held to a grammar: which tokens may come next, by llguidance."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from runtime.errors import ExecutionFailed, InvalidArgument, Unsupported
from runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

StructuredKind = Literal["json_object", "json_schema", "regex", "choice", "gbnf", "lark"]

MAX_GRAMMAR_CHARACTERS = 200_000
"""Longer grammars are refused: compiling one takes time and memory in proportion."""

_MAX_COMPILED = 64

# llguidance counts its work in fuel, about 14,000 a millisecond. A quarter of its defaults: one request's grammar must
# not hold up the step of all others.
_INITIAL_FUEL, _STEP_FUEL = 250_000, 50_000


@dataclass(frozen=True)
class StructuredOutput:
    """What the output must match.

    kind  json_object (any object; `text` is empty), json_schema, regex, choice, gbnf (as in llama.cpp), lark
    text  the schema as JSON text, the regular expression, the choices as a JSON list of strings, or the grammar
    """

    kind: StructuredKind
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _GRAMMARS:
            raise InvalidArgument(f"structured output of kind {self.kind!r}: known are {', '.join(_GRAMMARS)}")
        if not isinstance(self.text, str):
            raise InvalidArgument(f"structured output of kind {self.kind}: its text is a {type(self.text).__name__}")


class TokenMatcher(Protocol):
    """Follows the output of one request and says which tokens may come next."""

    @property
    def is_stopped(self) -> bool:
        """Whether the output is complete: nothing more can follow."""

    def mask(self) -> NDArray[np.bool_]:
        """Tokens that may come next: bool [vocab_size]."""

    def advance(self, token_id: int) -> None:
        """Take the token that was chosen."""


class Matcher:
    """The state of one output within its grammar, as a TokenMatcher."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def is_stopped(self) -> bool:
        """Whether the grammar is satisfied and nothing more can follow."""
        return bool(self._matcher.is_stopped())

    def mask(self) -> NDArray[np.bool_]:
        """Which tokens may come next: bool [vocab_size]."""
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._raise_on_error()
        allowed = np.zeros(self._vocab_size, np.bool_)
        known = np.unpackbits(bits, bitorder="little")[: self._vocab_size]
        allowed[: known.size] = known
        return allowed

    def advance(self, token_id: int) -> None:
        """Take the token that was chosen; it must be one that `mask` allowed."""
        if not self._matcher.consume_token(token_id):
            self._raise_on_error()
            raise ExecutionFailed(f"the grammar refuses token {token_id}, which its own mask had allowed")

    def _raise_on_error(self) -> None:
        if self._matcher.is_error():
            raise ExecutionFailed(
                f"the grammar of this request cannot be followed further: {_first_line(self._matcher.get_error())}",
                remedy="simplify the schema or grammar",
            )


class Grammars:
    """Compiles grammars for one tokenizer.

    `vocab_size` is the width of the logits, which may exceed the tokenizer's own size. The index over the vocabulary
    that llguidance needs is built once, on first use (about two seconds for 128,000 tokens); `prepare` builds it early.
    Raises Unsupported where llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._index: Any = None
        self._compiled: dict[StructuredOutput, str] = {}
        """The last grammars that were found right, the latest last."""

    def prepare(self) -> None:
        """Build the index over the vocabulary now."""
        library = _llguidance()
        with self._lock:
            if self._index is None:
                self._index = library.LLTokenizer(
                    _Vocabulary(self._tokenizer),
                    n_vocab=self._tokenizer.vocab_size,
                    eos_token=sorted(self._tokenizer.eos_token_ids),
                )

    def check(self, structured: StructuredOutput) -> None:
        """Raise InvalidArgument unless every part of the grammar is understood: what is not enforced is refused."""
        self._compile(structured)

    def matcher(self, structured: StructuredOutput) -> Matcher:
        """A matcher at the beginning of an output; raises as `check` does."""
        grammar = self._compile(structured)
        library = _llguidance()
        limits = library.LLParserLimits(initial_lexer_fuel=_INITIAL_FUEL, step_lexer_fuel=_STEP_FUEL)
        return Matcher(library.LLMatcher(self._index, grammar, limits=limits), self._vocab_size)

    @property
    def is_prepared(self) -> bool:
        """Whether the index over the vocabulary is there."""
        return self._index is not None

    def _compile(self, structured: StructuredOutput) -> str:
        with self._lock:
            known = self._compiled.get(structured)
        if known is not None:
            return known
        grammar = self._compile_new(structured)
        with self._lock:
            self._compiled[structured] = grammar
            if len(self._compiled) > _MAX_COMPILED:
                del self._compiled[next(iter(self._compiled))]
        return grammar

    def _compile_new(self, structured: StructuredOutput) -> str:
        if len(structured.text) > MAX_GRAMMAR_CHARACTERS:
            raise InvalidArgument(
                f"the {structured.kind} has {len(structured.text)} characters; the most is {MAX_GRAMMAR_CHARACTERS}"
            )
        if not self._tokenizer.eos_token_ids:
            raise Unsupported("structured output needs an end-of-generation token; this model's vocabulary has none")
        self.prepare()
        grammar = _GRAMMARS[structured.kind](structured.text)
        failed, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(grammar, self._index)
        if failed or messages:
            raise _refusal(structured.kind, "; ".join(messages))
        return grammar


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_token_ids)
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)

    def __call__(self, text: str | bytes) -> list[int]:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return self._tokenizer.encode(decoded, add_special=False, parse_special=False)


def _json_object(text: str) -> str:
    return _json_schema('{"type": "object"}')


def _json_schema(text: str) -> str:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal("json_schema", f"not JSON: {error}") from error
    if not isinstance(schema, (dict, bool)):
        raise _refusal("json_schema", f"a schema is an object or a boolean, this is {type(schema).__name__}")
    compiled: str = _llguidance().LLMatcher.grammar_from_json_schema(text)
    return compiled


def _regex(text: str) -> str:
    compiled: str = _llguidance().LLMatcher.grammar_from_regex(text)
    return compiled


def _choice(text: str) -> str:
    try:
        choices = json.loads(text)
    except ValueError as error:
        raise _refusal("choice", f"not a JSON list: {error}") from error
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise _refusal("choice", "it must be a list of one or more non-empty strings")
    return _lark("start: " + " | ".join(json.dumps(c) for c in choices))


def _gbnf(text: str) -> str:
    _llguidance()
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return _lark(gbnf_to_lark(_ESCAPE.sub(_without_unicode_escape, text)))
    except Exception as error:  # the converter raises plain Exception for what it does not understand
        raise _refusal("gbnf", str(error) or type(error).__name__) from error


def _without_unicode_escape(match: re.Match[str]) -> str:
    r"""\uXXXX and \UXXXXXXXX as the character itself: Lark does not know these escapes."""
    code = match[1]
    if code[0] not in "uU" or len(code) == 1:
        return match[0]
    number = int(code[1:], 16)
    return f"\\x{number:02x}" if number < 0x80 else chr(number)


def _lark(text: str) -> str:
    compiled: str = _llguidance().LLMatcher.grammar_from_lark(text)
    return compiled


_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)

_GRAMMARS: dict[str, Callable[[str], str]] = {
    "json_object": _json_object,
    "json_schema": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "gbnf": _gbnf,
    "lark": _lark,
}


def _refusal(kind: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"the {kind} cannot be enforced: {why}",
        remedy="correct it, or leave out what is not supported: nothing is enforced in part",
    )


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason was given"


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise Unsupported(
            f"structured output needs the package llguidance ({error})", remedy="pip install 'hal-runtime[serve]'"
        ) from error
    return llguidance
