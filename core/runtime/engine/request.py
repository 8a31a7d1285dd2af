"""One generation job: its state, its tokens, and what the caller gets back.

WAITING ──> RUNNING ──> FINISHED (stop | length | aborted | error)
   └────────────────────────^
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from runtime.engine.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "aborted", "error"]


class RequestState(Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


_TRANSITIONS = {
    RequestState.WAITING: (RequestState.RUNNING, RequestState.FINISHED),
    RequestState.RUNNING: (RequestState.FINISHED,),
    RequestState.FINISHED: (),
}


@dataclass(frozen=True)
class TokenLogprob:
    """A token with the logarithm of the probability that the model gave it; `rank` 1 is the most probable."""

    token_id: int
    logprob: float
    rank: int
    text: str


@dataclass(frozen=True)
class PositionLogprobs:
    """The chosen token of one position and the most probable alternatives, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class RequestOutput:
    """What one step added to a request: `text` and `token_ids` are the new part only."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(frozen=True)
class Completion:
    """A finished generation.

    `token_ids` holds every generated token, an end-of-generation token included; `text` leaves special tokens and the
    stop string out. `seed` reproduces it.
    """

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: tuple[PositionLogprobs, ...] | None
    seed: int


@dataclass(eq=False)
class Request:
    """A request inside the engine. It has no phase: `num_computed_tokens` catches up with `num_tokens`."""

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    max_tokens: int
    """Most tokens to generate, already limited by the context."""
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    state: RequestState = RequestState.WAITING
    finish_reason: FinishReason | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.seed = secrets.randbits(63) if self.params.seed is None else self.params.seed

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.output_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

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
