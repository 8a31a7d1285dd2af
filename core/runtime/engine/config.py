"""What a caller may ask of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from runtime.errors import InvalidArgument

Fallback = Literal["forbid", "decompose", "host"]
SchedulingPolicy = Literal["fcfs", "priority", "fair"]


@dataclass(frozen=True)
class EngineConfig:
    """Settings of one engine; None leaves the choice to the model, the device or the memory that is there.

    model                   GGUF file (or the first part of a split one), Hugging Face directory; None: the demo model
    backend                 "auto", a backend's name, or "name:device index"
    threads                 host threads that the device may use
    max_model_len           context in tokens; None fits it to the model and to memory
    kv_format               format of the KV cache: f32, f16, bf16, ... as the device offers
    fallback                what may happen to operations that the device lacks: "forbid", "decompose" (into operations
                            that it has, or decoding weights at load), "host"
    place                   device by node name pattern, e.g. "layers[0:8]=cuda,layers[8:]=cpu"; of several
                            that match, the first counts
    max_num_seqs            most sequences in one step
    max_num_batched_tokens  most tokens in one step; longer prompts are cut into chunks
    enable_prefix_caching   keep the KV blocks of finished requests for prompts that begin alike
    scheduling_policy       who goes first: "fcfs" (first come, first served), "priority" (smaller numbers first, nobody
                            is overtaken for ever), "fair" (whoever has been given the fewest tokens)
    max_queued_requests     most requests that may wait; more are refused with QueueFull
    max_queued_tokens       most tokens of prompts that may wait for their first token, unless there is only one such
                            prompt; None: any number
    num_kv_blocks           blocks of the KV cache; None: what max_num_seqs sequences of max_model_len need, or what
                            fits into memory
    swap_bytes              host memory for the KV blocks of preempted requests, where the device can move them; with 0
                            they are computed again
    long_prefill_token_threshold
                            most prompt tokens in a step while others decode; 0: no limit; None: prompts of up to 256
                            tokens come in chunks of 64, longer ones by as many tokens as about double the time of a
                            decoding step, by measured step times
    step_timeout_s          a step that takes longer is reported with the stack of the engine's threads
    check_tensors           look for NaN and infinity in the weights before use
    chat_template           a template's text that replaces the model's own
    device_options          settings that the chosen backend documents, by name
    weight_cache            folder where packed weights are kept for later starts; None: they are packed at each start
    """

    model: str | Path | None = None
    backend: str = "auto"
    threads: int | None = None
    max_model_len: int | None = None
    kv_format: str | None = None
    fallback: Fallback = "host"
    place: str | None = None
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    enable_prefix_caching: bool = True
    scheduling_policy: SchedulingPolicy = "fcfs"
    max_queued_requests: int = 1024
    max_queued_tokens: int | None = None
    num_kv_blocks: int | None = None
    swap_bytes: int = 0
    long_prefill_token_threshold: int | None = None
    step_timeout_s: float = 300.0
    check_tensors: bool = False
    chat_template: str | None = None
    device_options: Mapping[str, str] = field(default_factory=dict)
    weight_cache: str | Path | None = None

    def __post_init__(self) -> None:
        if self.fallback not in ("forbid", "decompose", "host"):
            raise InvalidArgument(f"fallback = {self.fallback!r}: it must be forbid, decompose or host")
        if self.scheduling_policy not in ("fcfs", "priority", "fair"):
            raise InvalidArgument(f"scheduling_policy = {self.scheduling_policy!r}: it must be fcfs, priority or fair")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InvalidArgument(f"{name} = {value!r}: it must be a positive integer")
        for name in ("swap_bytes", "long_prefill_token_threshold"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 0):
                raise InvalidArgument(f"{name} = {value!r}: it must be an integer from 0")
        if not self.step_timeout_s > 0:
            raise InvalidArgument(f"step_timeout_s = {self.step_timeout_s!r}: it must be positive seconds")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidArgument(
                f"max_num_batched_tokens = {self.max_num_batched_tokens} is less than max_num_seqs = "
                f"{self.max_num_seqs}; every running sequence needs a token in each step"
            )


_POSITIVE = (
    "threads",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_queued_requests",
    "max_queued_tokens",
    "num_kv_blocks",
)
