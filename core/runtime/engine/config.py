"""What a caller may ask of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from runtime.errors import InvalidArgument

Fallback = Literal["forbid", "decompose", "host"]


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
    place                   device by node name pattern, e.g. "layers.0.*=cpu,lm_head=cpu"
    max_num_seqs            most sequences in one step
    max_num_batched_tokens  most tokens in one step; longer prompts are cut into chunks
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
    check_tensors: bool = False
    chat_template: str | None = None
    device_options: Mapping[str, str] = field(default_factory=dict)
    weight_cache: str | Path | None = None

    def __post_init__(self) -> None:
        if self.fallback not in ("forbid", "decompose", "host"):
            raise InvalidArgument(f"fallback = {self.fallback!r}: it must be forbid, decompose or host")
        for name in ("threads", "max_model_len", "max_num_seqs", "max_num_batched_tokens"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InvalidArgument(f"{name} = {value!r}: it must be a positive integer")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidArgument(
                f"max_num_batched_tokens = {self.max_num_batched_tokens} is less than max_num_seqs = "
                f"{self.max_num_seqs}; every running sequence needs a token in each step"
            )
