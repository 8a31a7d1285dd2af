"""How the tokens of one request are chosen and when it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from runtime.errors import InvalidArgument

if TYPE_CHECKING:
    from runtime.engine.structured import StructuredOutput

MAX_LOGPROBS = 20
"""Most alternatives per token that `logprobs` may ask for (as in the OpenAI interface)."""
MAX_SAMPLES = 128
"""Most samples of one prompt that `n` may ask for."""


@dataclass
class SamplingParams:
    """Sampling settings, named and ranged as users of vLLM know them.

    temperature          0 takes the most probable token; otherwise logits are divided by it
    top_k                keep the k most probable tokens; 0 or -1 keeps all
    top_p                keep the fewest most probable tokens whose probabilities reach top_p
    min_p                keep tokens at least min_p times as probable as the most probable one
    typical_p            keep the tokens closest to the expected information, up to this mass (Meister et al. 2022)
    repetition_penalty   > 1 disfavours tokens of prompt and output (Keskar et al. 2019)
    presence_penalty     subtracted once from every token that occurred in the output
    frequency_penalty    subtracted as often as the token occurred in the output
    logit_bias           token id -> addend; -inf bans the token
    max_tokens           most tokens to generate; None goes on to the end of the context
    min_tokens           no end-of-generation token before so many
    stop                 strings that end the output; they are not part of it
    stop_token_ids       token ids that end the output
    seed                 same seed, same tokens; None draws one
    ignore_eos           go on after an end-of-generation token
    logprobs             None, or how many alternatives to report beside each chosen token (0: the chosen one only)
    skip_special_tokens  leave special tokens out of the text
    n                    samples of the prompt, which is computed once; sample i is drawn with seed + i
    structured           what the output must match: a JSON schema, a regular expression, a grammar

    Filters apply in the order temperature, top_k, top_p, min_p, typical_p. Log-probabilities are those of the model,
    before temperature, filters and penalties. A request takes a checked copy: what is changed later counts for later
    requests.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True
    n: int = 1
    structured: StructuredOutput | None = None

    def __post_init__(self) -> None:
        self.stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        self.stop_token_ids = tuple(self.stop_token_ids)
        for name, low, high, rule in _RANGES:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise InvalidArgument(f"{name} = {value!r}: it must be {rule}")
        for name, low in (("max_tokens", 1), ("logprobs", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < low):
                raise InvalidArgument(f"{name} = {value!r}: it must be None or an integer from {low}")
        if not isinstance(self.n, int) or not 1 <= self.n <= MAX_SAMPLES:
            raise InvalidArgument(f"n = {self.n!r}: it must be an integer in 1 .. {MAX_SAMPLES}")
        if self.logprobs is not None and self.logprobs > MAX_LOGPROBS:
            raise InvalidArgument(f"logprobs = {self.logprobs}: at most {MAX_LOGPROBS} alternatives can be reported")
        if any(not isinstance(s, str) or not s for s in self.stop):
            raise InvalidArgument(f"stop = {self.stop!r}: every stop string must be non-empty text")
        if self.seed is not None and not (isinstance(self.seed, int) and 0 <= self.seed < 2**64):
            raise InvalidArgument(f"seed = {self.seed!r}: it must be an integer in 0 .. 2**64 - 1")
        if any(math.isnan(b) or b == math.inf for b in self.logit_bias.values()):
            raise InvalidArgument("logit_bias holds NaN or +infinity; give finite numbers, or -inf to ban a token")

    def with_(self, **changes: Any) -> SamplingParams:
        """A copy with some settings changed."""
        return replace(self, **changes)


_RANGES: tuple[tuple[str, float, float, str], ...] = (
    ("temperature", 0, math.inf, "0 (greedy) or positive"),
    ("top_k", -1, math.inf, "positive, or 0 or -1 for all"),
    ("top_p", 1e-9, 1, "in (0, 1]"),
    ("min_p", 0, 1, "in [0, 1]"),
    ("typical_p", 1e-9, 1, "in (0, 1]"),
    ("repetition_penalty", 1e-9, math.inf, "positive"),
    ("presence_penalty", -2, 2, "in [-2, 2]"),
    ("frequency_penalty", -2, 2, "in [-2, 2]"),
    ("min_tokens", 0, math.inf, "0 or positive"),
)
