"""Beam search over an engine: each step asks for the best continuations of every beam, and the prefix cache helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from runtime.engine.batch import Job, run_jobs
from runtime.engine.dispatcher import Dispatcher
from runtime.engine.sampling_params import MAX_LOGPROBS, SamplingParams
from runtime.errors import InvalidArgument


@dataclass(frozen=True)
class BeamSearchParams:
    """Settings of a beam search, named as in vLLM.

    beam_width      beams that are kept at each step, and most that are returned
    max_tokens      most tokens of a beam; the context limits it too
    ignore_eos      an end-of-generation token is a token like others
    temperature     0: beams are ranked by the model's own log-probabilities, and nothing else is offered
    length_penalty  a beam's score is the sum of its log-probabilities, divided by its number of tokens to this power
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beam_width", "max_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InvalidArgument(f"{name} = {value!r}: it must be a positive integer")
        if self.temperature != 0:
            raise InvalidArgument(
                f"temperature = {self.temperature!r}: beam search ranks by the model's own log-probabilities",
                remedy="leave it at 0, or draw samples with generate and n",
            )


@dataclass(frozen=True)
class BeamSearchSequence:
    """One beam: what it adds to the prompt.

    `text` leaves special tokens out; `token_ids` hold an end-of-generation token where the beam ended with one.
    """

    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float
    score: float
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class BeamSearchOutput:
    """The beams of a prompt, best score first."""

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    sequences: tuple[BeamSearchSequence, ...]


def beam_search(
    dispatcher: Dispatcher,
    prompts: Sequence[tuple[Sequence[int], str | None]],
    params: BeamSearchParams,
    max_queued: int,
) -> list[BeamSearchOutput]:
    """The best beams of every prompt (token ids, and the text where there is one), all prompts in one batch.

    Ranks and ends as `generate(num_beams=...)` of transformers does with `early_stopping=False`.
    """
    engine = dispatcher.engine
    eos_token_ids = frozenset() if params.ignore_eos else engine.tokenizer.eos_token_ids
    # So many alternatives of a beam hold its `beam_width` best that go on, and whichever ends among the best of all.
    count = params.beam_width + len(eos_token_ids)
    if count > MAX_LOGPROBS:
        raise InvalidArgument(
            f"beam_width = {params.beam_width}: with {len(eos_token_ids)} end-of-generation tokens at most "
            f"{MAX_LOGPROBS - len(eos_token_ids)} beams can be followed"
        )
    step = SamplingParams(temperature=0.0, max_tokens=1, logprobs=min(count, engine.vocab_size), ignore_eos=True)
    searches = [
        _Search(token_ids, params, min(params.max_tokens, engine.max_model_len - len(token_ids)), eos_token_ids)
        for token_ids, _ in prompts
    ]
    active = searches
    while active:
        jobs = [Job([*s.prompt_token_ids, *beam.token_ids], step) for s in active for beam in s.running]
        completions = iter(run_jobs(dispatcher, jobs, max_queued, raise_errors=True))
        for search in active:
            continuations = []
            for _ in search.running:
                (position,) = next(completions).logprobs or ()
                continuations.append([(t.token_id, t.logprob) for t in position.top])
            search.take(continuations)
        active = [s for s in active if s.running]
    tokenizer = engine.tokenizer
    return [
        BeamSearchOutput(
            text,
            tuple(token_ids),
            tuple(
                BeamSearchSequence(
                    # Embeddings are often padded beyond the tokenizer's vocabulary; such an id has no text.
                    tokenizer.decode(t for t in end.beam.token_ids if t < tokenizer.vocab_size),
                    end.beam.token_ids,
                    end.beam.logprob,
                    end.score,
                    "stop" if end.beam.token_ids[-1] in eos_token_ids else "length",
                )
                for end in search.finished
            ),
        )
        for (token_ids, text), search in zip(prompts, searches)
    ]


@dataclass(frozen=True)
class _Beam:
    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0


@dataclass(frozen=True)
class _Finished:
    beam: _Beam
    score: float


class _Search:
    """The beams of one prompt, best first: those that go on, none when the search is over, and the finished ones."""

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        params: BeamSearchParams,
        max_tokens: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        self.prompt_token_ids = prompt_token_ids
        self.running = [_Beam()]
        self.finished: list[_Finished] = []
        self._params = params
        self._max_tokens = max_tokens
        self._eos_token_ids = eos_token_ids

    def take(self, continuations: Sequence[Sequence[tuple[int, float]]]) -> None:
        """Go one token on, by the best (token id, log-probability) of each running beam."""
        width = self._params.beam_width
        candidates = [
            _Beam((*beam.token_ids, token_id), beam.logprob + logprob)
            for beam, tokens in zip(self.running, continuations, strict=True)
            for token_id, logprob in tokens
        ]
        candidates.sort(key=lambda beam: -beam.logprob)
        num_tokens = len(candidates[0].token_ids)
        weight = num_tokens**self._params.length_penalty
        running: list[_Beam] = []
        for rank, beam in enumerate(candidates):
            if num_tokens >= self._max_tokens or beam.token_ids[-1] in self._eos_token_ids:
                if rank < width:  # what ends below the best ones is no answer
                    self.finished.append(_Finished(beam, beam.logprob / weight))
            elif len(running) < width:
                running.append(beam)
        self.finished.sort(key=lambda end: -end.score)
        del self.finished[width:]
        is_full = len(self.finished) == width
        # Log-probabilities only fall; that a longer beam is divided by more is left out, as transformers does.
        if is_full and running and running[0].logprob / weight <= self.finished[-1].score:
            running = []
        self.running = running
