"""What an engine has done and is doing, as numbers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from runtime.engine.lean import Lean
from runtime.engine.request import FINISH_REASONS, FinishReason

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Bounds of `EngineStats.steps_by_tokens`: a step belongs to the first one that is not less than its tokens."""


def _no_requests() -> dict[FinishReason, int]:
    return dict.fromkeys(FINISH_REASONS, 0)


@dataclass(frozen=True)
class EngineStats(Lean):
    """A snapshot. Gauges tell how things are; counters only grow, also across restarts of the engine.

    num_running, num_waiting  gauges: requests in the batch; requests that wait, preempted ones included
    num_blocks, block_size    gauges: the KV cache, and the tokens of a block
    num_free_blocks           gauge: blocks that no request holds
    num_cached_blocks         gauge: of the free ones, those whose content can be found again
    prefix_cache_queries      counter: tokens of prompts that were looked up
    prefix_cache_hits         counter: of those, tokens that were found
    prompt_tokens             counter: tokens of prompts that were computed, found ones not included
    generation_tokens         counter: tokens that were sampled
    prefill_seconds           counter: from first being scheduled to the first token, summed over requests
    decode_seconds            counter: from the first token to the last one so far, summed over requests
    preemptions               counter
    steps, step_seconds       counters: steps with work, and the time that they took
    step_tokens               counter: tokens that steps computed, of prompts and of answers
    step_sequences            counter: sequences that took part in steps, summed over steps
    steps_by_tokens           counters: steps by the tokens that they computed; bounds `STEP_TOKENS`, then more than all
    longest_sequence          tokens of the longest sequence that was ever computed
    restarts                  counter: how often the engine was started again
    requests_finished         counter by reason; each sample of a prompt counts
    """

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_cached_blocks: int = 0
    block_size: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    preemptions: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    step_tokens: int = 0
    step_sequences: int = 0
    steps_by_tokens: tuple[int, ...] = (0,) * (len(STEP_TOKENS) + 1)
    longest_sequence: int = 0
    restarts: int = 0
    requests_finished: Mapping[FinishReason, int] = field(default_factory=_no_requests)

    def plus_counters(self, earlier: EngineStats) -> EngineStats:
        """This snapshot with the counters of an engine that went before."""
        sums = {name: getattr(self, name) + getattr(earlier, name) for name in _COUNTERS}
        finished = {
            reason: count + earlier.requests_finished.get(reason, 0) for reason, count in self.requests_finished.items()
        }
        return replace(
            self,
            requests_finished=finished,
            steps_by_tokens=tuple(map(sum, zip(self.steps_by_tokens, earlier.steps_by_tokens))),
            longest_sequence=max(self.longest_sequence, earlier.longest_sequence),
            **sums,
        )


class StepCounts:
    """What the steps of an engine add up to."""

    def __init__(self) -> None:
        self.steps = self.tokens = self.sequences = self.longest_sequence = 0
        self.seconds = 0.0
        self.by_tokens = [0] * (len(STEP_TOKENS) + 1)

    def add(self, num_tokens: int, num_sequences: int, longest_sequence: int, seconds: float) -> None:
        """Count a step."""
        self.steps += 1
        self.tokens += num_tokens
        self.sequences += num_sequences
        self.longest_sequence = max(self.longest_sequence, longest_sequence)
        self.seconds += seconds
        self.by_tokens[bisect_left(STEP_TOKENS, num_tokens)] += 1


_GAUGES = ("num_running", "num_waiting", "num_blocks", "num_free_blocks", "num_cached_blocks", "block_size")
_OTHERS = ("requests_finished", "steps_by_tokens", "longest_sequence")
_COUNTERS = tuple(f.name for f in fields(EngineStats) if f.name not in (*_GAUGES, *_OTHERS))
