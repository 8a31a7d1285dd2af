"""What the output of a request must match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

StructuredKind = Literal["json_object", "json_schema", "regex", "choice", "gbnf", "lark"]


@dataclass(frozen=True)
class StructuredOutput:
    """A grammar by its text.

    kind  json_object, json_schema, regex, choice, gbnf, lark
    text  json_schema: the schema as JSON text; choice: a JSON list of strings; json_object: empty; else the grammar
    """

    kind: StructuredKind
    text: str = ""


class TokenMatcher(Protocol):
    """Follows the output of one request and says which tokens may come next."""

    @property
    def is_stopped(self) -> bool:
        """Whether the output is complete: only the end may come."""

    def mask(self) -> NDArray[np.bool_]:
        """Tokens that may come next: bool [vocab_size]."""

    def advance(self, token_id: int) -> None:
        """Take the token that was chosen."""
