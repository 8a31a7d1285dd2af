"""What an engine has done and is doing, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from runtime.engine.request import FINISH_REASONS, FinishReason


def _no_requests() -> dict[FinishReason, int]:
    return dict.fromkeys(FINISH_REASONS, 0)


@dataclass(frozen=True)
class EngineStats:
    """A snapshot. Gauges tell how things are; counters only grow, also across restarts of the engine.

    num_running, num_waiting  gauges: requests in the batch; requests that wait, preempted ones included
    num_blocks, block_size    gauges: the KV cache, and the tokens of a block
    num_free_blocks           gauge: blocks that no request holds
    num_cached_blocks         gauge: of the free ones, those whose content can be found again
    prefix_cache_queries      counter: tokens of prompts that were looked up
    prefix_cache_hits         counter: of those, tokens that were found
    prompt_tokens             counter: tokens of prompts that were computed, found ones not included
    generation_tokens         counter: tokens that were sampled
    preemptions               counter
    steps, step_seconds       counters: steps with work, and the time that they took
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
    preemptions: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    restarts: int = 0
    requests_finished: Mapping[FinishReason, int] = field(default_factory=_no_requests)

    def plus_counters(self, earlier: EngineStats) -> EngineStats:
        """This snapshot with the counters of an engine that went before."""
        sums = {name: getattr(self, name) + getattr(earlier, name) for name in _COUNTERS}
        finished = {
            reason: count + earlier.requests_finished.get(reason, 0) for reason, count in self.requests_finished.items()
        }
        return replace(self, requests_finished=finished, **sums)


_GAUGES = ("num_running", "num_waiting", "num_blocks", "num_free_blocks", "num_cached_blocks", "block_size")
_COUNTERS = tuple(f.name for f in fields(EngineStats) if f.name not in (*_GAUGES, "requests_finished"))
