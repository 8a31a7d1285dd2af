"""Runs large language models on whatever hardware is present.

Example::

    from runtime import LLM, SamplingParams

    with LLM("model.gguf") as llm:
        print(llm.generate("Once upon a time", SamplingParams(max_tokens=32)).text)

Names are imported on first use: `import runtime` itself loads nothing else.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers know the name; importing `typing` would take most of the time that this may take
if TYPE_CHECKING:
    from typing import Any

    from runtime.engine.async_llm import AsyncLLM
    from runtime.engine.beam_search import BeamSearchOutput, BeamSearchParams
    from runtime.engine.config import EngineConfig
    from runtime.engine.files import load_tokenizer
    from runtime.engine.llm import LLM
    from runtime.engine.logits_processors import LogitsProcessor
    from runtime.engine.request import Completion, CompletionOutput, PositionLogprobs, RequestOutput, TokenLogprob
    from runtime.engine.sampling_params import SamplingParams
    from runtime.errors import RuntimeFault
    from runtime.tokenizer import Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "AsyncLLM": "runtime.engine.async_llm",
    "BeamSearchOutput": "runtime.engine.beam_search",
    "BeamSearchParams": "runtime.engine.beam_search",
    "EngineConfig": "runtime.engine.config",
    "LLM": "runtime.engine.llm",
    "CompletionOutput": "runtime.engine.request",
    "LogitsProcessor": "runtime.engine.logits_processors",
    "Completion": "runtime.engine.request",
    "PositionLogprobs": "runtime.engine.request",
    "RequestOutput": "runtime.engine.request",
    "RuntimeFault": "runtime.errors",
    "SamplingParams": "runtime.engine.sampling_params",
    "TokenLogprob": "runtime.engine.request",
    "Tokenizer": "runtime.tokenizer",
    "load_tokenizer": "runtime.engine.files",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "Completion",
    "CompletionOutput",
    "EngineConfig",
    "LogitsProcessor",
    "PositionLogprobs",
    "RequestOutput",
    "RuntimeFault",
    "SamplingParams",
    "TokenLogprob",
    "Tokenizer",
    "__version__",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'runtime' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
