"""How the tokens of one request are chosen and when it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from runtime.errors import InvalidArgument

if TYPE_CHECKING:
    from runtime.engine.logits_processors import LogitsProcessor
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
    allowed_token_ids    the only tokens that may be chosen; None allows all
    bad_words            words that never come: the last token of one is banned where the output ends with those before
                         it, for the word as it is and after a space
    max_tokens           most tokens to generate; None goes on to the end of the context; 0, with prompt_logprobs, only
                         computes the prompt
    min_tokens           no end-of-generation token before so many
    stop                 strings that end the output
    include_stop_str_in_output
                         whether the stop string that ended the output stays in the text
    stop_token_ids       token ids that end the output
    seed                 same seed, same tokens; None draws one
    ignore_eos           go on after an end-of-generation token
    logprobs             None, or how many alternatives to report beside each chosen token (0: the chosen one only)
    prompt_logprobs      the same for the tokens of the prompt, the first of which has none. The prompt is then computed
                         from its beginning, also where a part of it is in the prefix cache
    skip_special_tokens  leave special tokens out of the text
    n                    samples of the prompt, which is computed once; sample i is drawn with seed + i
    structured           what the output must match: a JSON schema, a regular expression, a grammar
    logits_processors    names of installed logits processors, or functions, applied in this order before all else
    logits_processor_args
                         name of a processor -> arguments that it is made with; see docs/logits-processors.md

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
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: Sequence[int] = ()
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    n: int = 1
    structured: StructuredOutput | None = None
    logits_processors: Sequence[str | LogitsProcessor] = ()
    logits_processor_args: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        self.stop_token_ids = tuple(self.stop_token_ids)
        for name, low, high, rule in _RANGES:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise InvalidArgument(f"{name} = {value!r}: it must be {rule}")
        # A prompt alone is computed for its log-probabilities; without them it would be for nothing.
        least = 1 if self.prompt_logprobs is None else 0
        for name, low in (("max_tokens", least), ("logprobs", 0), ("prompt_logprobs", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < low):
                raise InvalidArgument(f"{name} = {value!r}: it must be None or an integer from {low}")
            if "logprobs" in name and value is not None and value > MAX_LOGPROBS:
                raise InvalidArgument(f"{name} = {value}: at most {MAX_LOGPROBS} alternatives can be reported")
        if not isinstance(self.n, int) or not 1 <= self.n <= MAX_SAMPLES:
            raise InvalidArgument(f"n = {self.n!r}: it must be an integer in 1 .. {MAX_SAMPLES}")
        if any(not isinstance(s, str) or not s for s in self.stop):
            raise InvalidArgument(f"stop = {self.stop!r}: every stop string must be non-empty text")
        if self.seed is not None and not (isinstance(self.seed, int) and 0 <= self.seed < 2**64):
            raise InvalidArgument(f"seed = {self.seed!r}: it must be an integer in 0 .. 2**64 - 1")
        if any(math.isnan(b) or b == math.inf for b in self.logit_bias.values()):
            raise InvalidArgument("logit_bias holds NaN or +infinity; give finite numbers, or -inf to ban a token")
        self._check_words_and_processors()

    def _check_words_and_processors(self) -> None:
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = tuple(self.allowed_token_ids)
            if not all(isinstance(t, int) for t in self.allowed_token_ids or ()):
                raise InvalidArgument(f"allowed_token_ids = {self.allowed_token_ids!r}: it must hold token ids")
            if not self.allowed_token_ids:
                raise InvalidArgument("allowed_token_ids is empty, so that no token could be chosen; leave it out")
        for name in ("bad_words", "logits_processors"):
            value = getattr(self, name)
            setattr(self, name, (value,) if isinstance(value, str) or callable(value) else tuple(value))
        if any(not isinstance(word, str) or not word.strip() for word in self.bad_words):
            raise InvalidArgument(f"bad_words = {self.bad_words!r}: every word must be text that is not blank")
        if not all(isinstance(p, str) or callable(p) for p in self.logits_processors):
            raise InvalidArgument(f"logits_processors = {self.logits_processors!r}: each must be a name or a function")
        for name in self.logits_processor_args:
            if name not in self.logits_processors:
                raise InvalidArgument(
                    f"logits_processor_args has arguments for '{name}', which logits_processors does not name"
                )

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
