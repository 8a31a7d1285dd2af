"""One generation job: its state, its tokens, and what the caller gets back.

            ┌──────────────┐
            v              │
WAITING ──> RUNNING ──> PREEMPTED        RUNNING holds blocks; WAITING and PREEMPTED hold none
   │           │           │
   └───────────┴───────────┴──> FINISHED (stop | length | aborted | error | timeout)
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from runtime.engine.lean import Lean
from runtime.engine.sampling_params import SamplingParams
from runtime.engine.structured import TokenMatcher
from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.engine.logits_processors import NamedProcessor

FinishReason = Literal["stop", "length", "aborted", "error", "timeout"]
FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "aborted", "error", "timeout")


class RequestState(Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


_TRANSITIONS = {
    RequestState.WAITING: (RequestState.RUNNING, RequestState.FINISHED),
    RequestState.RUNNING: (RequestState.PREEMPTED, RequestState.FINISHED),
    RequestState.PREEMPTED: (RequestState.RUNNING, RequestState.FINISHED),
    RequestState.FINISHED: (),
}


@dataclass(frozen=True)
class TokenLogprob:
    """A token with the logarithm of the probability that the model gave it; `rank` 1 is the most probable."""

    token_id: int
    logprob: float
    rank: int
    text: str

    @property
    def decoded_token(self) -> str:
        """`text`, by vLLM's name."""
        return self.text


@dataclass(frozen=True)
class PositionLogprobs(Mapping[int, TokenLogprob]):
    """The chosen token of one position and the most probable alternatives, best first.

    It is also vLLM's mapping of token ids to log-probabilities, the chosen token first.
    """

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]

    def __getitem__(self, token_id: int) -> TokenLogprob:
        for token in (self.chosen, *self.top):
            if token.token_id == token_id:
                return token
        raise KeyError(token_id)

    def __iter__(self) -> Iterator[int]:
        return iter(dict.fromkeys(token.token_id for token in (self.chosen, *self.top)))

    def __len__(self) -> int:
        return len({token.token_id for token in (self.chosen, *self.top)})


@dataclass(frozen=True)
class RequestTimes:
    """How one sample spent its life, in seconds of the engine's clock.

    queue_s          from its arrival until it was first scheduled, or to its end where it never was
    prefill_s        from there to the first token, preemptions included; None: there was none
    decode_s         from the first token to the last one, preemptions included
    num_preemptions  how often it gave its blocks back
    max_tokens       most tokens that it might generate: what was asked for, limited by the context
    """

    queue_s: float
    prefill_s: float | None
    decode_s: float
    num_preemptions: int
    max_tokens: int


@dataclass(frozen=True)
class RequestOutput(Lean):
    """What one step added to a request: `text` and `token_ids` are the new part only.

    index              which of the `n` samples of the prompt
    error              with finish_reason "error": what went wrong
    num_prompt_tokens  tokens of the prompt
    num_cached_tokens  of those, tokens whose keys and values were found in the prefix cache
    seed               reproduces the sample
    times              with the last output of a sample
    prompt_logprobs    in the first output, where they were asked for: of every token of the prompt, None for the first
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    index: int = 0
    error: str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    seed: int = 0
    times: RequestTimes | None = None
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None

    @property
    def finished(self) -> bool:
        """Whether this is the last output of its sample."""
        return self.finish_reason is not None


@dataclass(frozen=True)
class CompletionOutput:
    """One sample of a prompt in the shape that vLLM gives it."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: tuple[PositionLogprobs, ...] | None

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the log-probabilities of the chosen tokens; None unless `logprobs` was asked for."""
        return None if self.logprobs is None else sum(p.chosen.logprob for p in self.logprobs)


@dataclass(frozen=True)
class Completion:
    """A finished generation. It is also the list of one that vLLM makes of a single prompt: item 0 is itself.

    `token_ids` holds every generated token, an end-of-generation token included; `text` leaves special tokens and the
    stop string out. `seed` reproduces it.

    num_cached_tokens  tokens of the prompt that were found in the prefix cache
    error              with finish_reason "error": what went wrong
    others             with `n` > 1: samples 1 .. n - 1 of the same prompt
    request_id         by which the engine knew it; empty where it was refused
    prompt_logprobs    of every token of the prompt, None for the first; None where they were not asked for
    """

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: tuple[PositionLogprobs, ...] | None
    seed: int
    num_cached_tokens: int = 0
    error: str | None = None
    others: tuple[Completion, ...] = ()
    request_id: str = ""
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None

    @property
    def finished(self) -> bool:
        """True: there are no unfinished completions."""
        return True

    @property
    def outputs(self) -> tuple[CompletionOutput, ...]:
        """All samples of the prompt."""
        return tuple(
            CompletionOutput(i, c.text, c.token_ids, c.finish_reason, c.stop_reason, c.logprobs)
            for i, c in enumerate((self, *self.others))
        )

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Completion]:
        return iter((self,))

    def __getitem__(self, index: int) -> Completion:
        return (self,)[index]


@dataclass(eq=False)
class Request:
    """A request inside the engine. It has no phase: `num_computed_tokens` catches up with `num_tokens`.

    A prompt that is sampled n times becomes n requests: sample 0 leads, the others take its blocks over when it has
    computed the prompt.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    max_tokens: int
    """Most tokens to generate, already limited by the context."""
    index: int = 0
    priority: int = 0
    """Smaller runs first, where the policy is "priority"."""
    tenant: str = ""
    """Who asks: the policy "fair" shares tokens among tenants."""
    cache_salt: str = ""
    """Prefixes are shared among requests of one salt only."""
    skip_reading_prefix_cache: bool = False
    """Compute the whole prompt although its beginning may be known; others may still find it afterwards."""
    deadline: float | None = None
    """When the request times out, on the clock of `time.monotonic`."""
    leader: Request | None = None
    """Sample 0 of the same prompt, for the others."""
    matcher: TokenMatcher | None = None
    processors: tuple[NamedProcessor, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed: NDArray[np.bool_] | None = None
    """The tokens that may be chosen, where not all may: bool [vocab_size]."""
    prompt_logprobs: list[PositionLogprobs | None] = field(default_factory=lambda: [None])
    """Of the prompt's tokens, as far as they are computed; the samples of a prompt share the list."""
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    """Of the full blocks of tokens, as far as they were needed."""
    state: RequestState = RequestState.WAITING
    finish_reason: FinishReason | None = None
    error: RuntimeFault | None = None
    seed: int = 0
    arrival: int = -1
    """Number in the order of arrival, given by the scheduler."""
    num_overtaken: int = 0
    """Later requests that were admitted first."""
    num_preemptions: int = 0
    arrived_s: float = field(default_factory=time.monotonic)
    scheduled_s: float | None = None
    """When a step first computed something of it."""
    first_token_s: float | None = None
    last_token_s: float | None = None
    num_swapped_blocks: int = 0
    """While preempted: blocks whose content lies in the host's memory."""
    swapped: Any = None
    """That content, as the runner wrote it."""
    block_array: Any = None
    """`block_table` as the runner last wrote it."""

    def __post_init__(self) -> None:
        # Drawn seeds are whole numbers that every reader of JSON keeps.
        self.seed = secrets.randbits(53) if self.params.seed is None else (self.params.seed + self.index) % 2**64

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_scored_tokens(self) -> int:
        """Tokens of the prompt whose log-probabilities are known, or not wanted."""
        return self.num_prompt_tokens if self.params.prompt_logprobs is None else len(self.prompt_logprobs)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.output_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def times(self, now: float) -> RequestTimes:
        """How it spent its life, which is over."""
        scheduled, first, last = self.scheduled_s, self.first_token_s, self.last_token_s
        return RequestTimes(
            queue_s=(now if scheduled is None else scheduled) - self.arrived_s,
            prefill_s=None if first is None or scheduled is None else first - scheduled,
            decode_s=0.0 if first is None or last is None else last - first,
            num_preemptions=self.num_preemptions,
            max_tokens=self.max_tokens,
        )

    def token_ids_at(self, start: int, stop: int) -> list[int]:
        """Tokens at positions start .. stop - 1 of prompt and output together."""
        n = len(self.prompt_token_ids)
        head = list(self.prompt_token_ids[start : min(stop, n)]) if start < n else []
        return head + self.output_token_ids[max(start - n, 0) : max(stop - n, 0)]

    def move_to(self, state: RequestState) -> None:
        """Change state; a transition that the drawing above does not show is a bug and raises."""
        if state not in _TRANSITIONS[self.state]:
            raise RuntimeError(f"request {self.request_id}: illegal transition {self.state.name} -> {state.name}")
        self.state = state
