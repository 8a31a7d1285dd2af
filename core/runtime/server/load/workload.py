"""What is asked: prompts of wanted lengths, made of common words, with or without a shared beginning."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from runtime.errors import InvalidArgument

Endpoint = Literal["completions", "chat"]

# Common English words: in most vocabularies each is one token with its leading space.
_TEXT = (
    "the of and to in is that for it was on are as with they at be this from have or by one had not but what all were "
    "when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made "
    "over did down only way find use may water long little very after words called just where most know"
)
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class Workload:
    """What one run asks of a server.

    input_tokens, output_tokens  (least, most) per request, drawn evenly
    shared_prefix_tokens         tokens at the beginning that all prompts share, counted in input_tokens
    ignore_eos                   ask the server to go on after an end-of-generation token, so that lengths are met
    """

    input_tokens: tuple[int, int] = (256, 256)
    output_tokens: tuple[int, int] = (64, 64)
    shared_prefix_tokens: int = 0
    endpoint: Endpoint = "completions"
    ignore_eos: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise InvalidArgument(f"{name} = {least}..{most}: it must be 1 <= least <= most")
        if not 0 <= self.shared_prefix_tokens < self.input_tokens[0]:
            raise InvalidArgument(
                f"shared_prefix_tokens = {self.shared_prefix_tokens}: it must be less than the shortest prompt, "
                f"{self.input_tokens[0]} tokens"
            )


@dataclass(frozen=True)
class Ask:
    """One request: the text, and how many tokens to generate."""

    prompt: str
    output_tokens: int


@dataclass(frozen=True)
class Scale:
    """How text becomes tokens at the server, as measured there: tokens = fixed + per_word * words."""

    fixed: float
    per_word: float

    def words(self, tokens: int) -> int:
        """Words whose prompt has about `tokens` tokens."""
        return max(1, round((tokens - self.fixed) / self.per_word))


def asks(workload: Workload, scale: Scale, seed: int) -> Iterator[Ask]:
    """Requests without end; the same seed gives the same ones."""
    shared = words(random.Random(workload.seed), scale.words(workload.shared_prefix_tokens))
    draw = random.Random(f"{workload.seed}/{seed}")
    while True:
        count = scale.words(draw.randint(*workload.input_tokens))
        own = words(draw, count - len(shared) if workload.shared_prefix_tokens else count)
        text = " ".join([*shared, *own] if workload.shared_prefix_tokens else own)
        yield Ask(text, draw.randint(*workload.output_tokens))


def words(draw: random.Random, count: int) -> list[str]:
    """`count` common words, at least one."""
    return draw.choices(_WORDS, k=max(1, count))
