"""What a caller may give as a prompt, and as arguments that come from vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from runtime.errors import InvalidArgument
from runtime.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or one of them as vLLM writes it: {"prompt": text} or {"prompt_token_ids": ids}."""
Message = Mapping[str, Any]


def is_one_prompt(prompts: Prompt | Sequence[Prompt]) -> bool:
    """Whether this is one prompt and not a list of them."""
    return isinstance(prompts, (str, Mapping)) or (len(prompts) > 0 and isinstance(prompts[0], int))


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> tuple[list[int], str | None]:
    """Token ids of a prompt, and its text where it was given as text."""
    if isinstance(prompt, Mapping):
        unknown = sorted(set(prompt) - {"prompt", "prompt_token_ids"})
        text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if unknown or (text is None and token_ids is None):
            raise InvalidArgument(
                f"a prompt has the keys {', '.join(map(repr, prompt)) or '(none)'}",
                remedy="give text or token ids, or a mapping with prompt or prompt_token_ids",
            )
        return (tokenizer.encode(str(text)) if token_ids is None else list(token_ids)), text
    return (tokenizer.encode(prompt), prompt) if isinstance(prompt, str) else (list(prompt), None)


def refuse_arguments(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise InvalidArgument for arguments of `LLM` that do not exist, with what to do instead."""
    known = list(known)
    for name in names:
        remedy = _REMEDIES.get(name)
        if remedy is None:
            close = get_close_matches(name, known, 1)
            remedy = f"did you mean {close[0]}?" if close else f"LLM takes {', '.join(known)}"
        raise InvalidArgument(f"LLM has no argument {name}", remedy=remedy)


_ONE_DEVICE = "leave it out: an engine has one device, and place=... puts layers on others"
_LOCAL_FILES = "leave it out: nothing is downloaded; give the path of a GGUF file or a Hugging Face directory"
_IN_THE_MODEL = "leave it out: the model's own file says it"
_ALWAYS = "leave it out: one LLM generates and embeds, no mode is chosen"
_FASTEST = "leave it out: steps are captured where the device can; device_options has its settings"
_NO_LORA = "leave it out and merge the adapter into the weights: adapters are not served"
_REMEDIES = {
    "tensor_parallel_size": _ONE_DEVICE,
    "pipeline_parallel_size": _ONE_DEVICE,
    "data_parallel_size": _ONE_DEVICE,
    "distributed_executor_backend": _ONE_DEVICE,
    "cpu_offload_gb": "use place=..., which puts layers on other devices",
    "device": "use backend=..., a backend's name or name:index",
    "dtype": "leave it out: weights are computed in the format of their file; kv_format=... is that of the KV cache",
    "quantization": _IN_THE_MODEL,
    "load_format": _IN_THE_MODEL,
    "tokenizer": _IN_THE_MODEL,
    "tokenizer_mode": _IN_THE_MODEL,
    "hf_overrides": _IN_THE_MODEL,
    "generation_config": _IN_THE_MODEL,
    "skip_tokenizer_init": "leave it out: prompts may be token ids",
    "trust_remote_code": "leave it out: code that lies beside a model is never run",
    "revision": _LOCAL_FILES,
    "tokenizer_revision": _LOCAL_FILES,
    "download_dir": _LOCAL_FILES,
    "hf_token": _LOCAL_FILES,
    "gpu_memory_utilization": "use num_kv_blocks=..., or max_model_len and max_num_seqs, which size the KV cache",
    "kv_cache_memory_bytes": "use num_kv_blocks=..., or max_model_len and max_num_seqs, which size the KV cache",
    "num_gpu_blocks_override": "use num_kv_blocks=...",
    "swap_space": "use swap_bytes=..., in bytes",
    "block_size": "leave it out: the device chooses it",
    "kv_cache_dtype": "use kv_format=...",
    "enforce_eager": _FASTEST,
    "max_seq_len_to_capture": _FASTEST,
    "compilation_config": _FASTEST,
    "enable_chunked_prefill": "leave it out: prompts are always cut into chunks of max_num_batched_tokens",
    "disable_log_stats": "leave it out: nothing is logged",
    "task": _ALWAYS,
    "runner": _ALWAYS,
    "convert": _ALWAYS,
    "guided_decoding_backend": "leave it out: SamplingParams(structured=...) says what the output must match",
    "enable_lora": _NO_LORA,
    "max_lora_rank": _NO_LORA,
    "speculative_config": "leave it out: there is no speculative decoding",
    "limit_mm_per_prompt": "leave it out: prompts are text",
}
