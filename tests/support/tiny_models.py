"""Tiny models of every architecture with random weights, made by transformers: sizes all distinct, every trait on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_SHORT = [1.0, 1.1, 1.2, 1.3, 1.5, 1.7]
_LONG = [1.0, 1.5, 2.0, 3.0, 5.0, 8.0]
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": _SHORT,
    "long_factor": _LONG,
}
_EXPERTS = {"num_experts_per_tok": 3, "moe_intermediate_size": 40, "norm_topk_prob": True}
_QWEN2_MOE = {
    **_EXPERTS,
    "norm_topk_prob": False,
    "num_experts": 6,
    "shared_expert_intermediate_size": 56,
    "num_hidden_layers": 3,
}
_GPT_OSS = {
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "head_dim": 32,
    "sliding_window": 8,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 32,
    },
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24, "tie_word_embeddings": True}),
    "llama3": ("llama", {"rope_parameters": _LLAMA3}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}}),
    "mistral": ("mistral", {"sliding_window": 8, "head_dim": 32}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen2-yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "phi3": (
        "phi3",
        {"sliding_window": 9, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "phi3-longrope": ("phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 128}),
    "phi3-longrope-long": ("phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 16}),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "num_hidden_layers": 3,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 1.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.21,
            "residual_multiplier": 0.6,
            "logits_scaling": 0.7,
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "tie_word_embeddings": False}),
    "smollm3-window": (
        "smollm3",
        {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 2},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 32}),
    "mixtral-window": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 8}),
    "qwen2_moe": ("qwen2_moe", _QWEN2_MOE),
    "qwen2_moe-some-dense": ("qwen2_moe", {**_QWEN2_MOE, "mlp_only_layers": [1], "norm_topk_prob": True}),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "num_experts": 6, "head_dim": 32, "num_hidden_layers": 3}),
    "gpt_oss": ("gpt_oss", _GPT_OSS),
    "gpt_oss-clamped": ("gpt_oss", {**_GPT_OSS, "swiglu_alpha": 1.3, "swiglu_limit": 0.8}),
}
"""Name -> (transformers' model type, fields that differ from the base)."""

_BASE: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}


def make_model(name: str) -> Any:
    """The transformers model called `name`, float32, with seeded weights large enough that logits vary."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, fields = CONFIGS[name]
    config = AutoConfig.for_model(model_type, **{**_BASE, **fields})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    embed_scale = 0.07 if model_type.startswith("gemma") else 0.5  # Gemma multiplies by sqrt(hidden_size)
    generator = torch.Generator().manual_seed(len(name) * 1009 + sum(map(ord, name)))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                experts_columns = model_type == "gpt_oss" and "experts" in parameter_name
                fan_in = parameter.shape[-2] if experts_columns and parameter.dim() == 3 else parameter.shape[-1]
                scale = (
                    embed_scale
                    if "embed_tokens" in parameter_name
                    else (0.3 if "_bias" in parameter_name else 1.5 * fan_in**-0.5)
                )
                parameter.copy_(noise * scale)
            elif "norm" in parameter_name:
                parameter.copy_(noise * 0.3 + (0.0 if model_type.startswith("gemma") else 1.0))
            else:
                parameter.copy_(noise * 0.3)
    return model


def save_model(name: str, folder: Path) -> Any:
    """Make the model and save it as a Hugging Face directory, in several shards for `qwen2`; returns the model."""
    model = make_model(name)
    model.save_pretrained(folder, max_shard_size="60KB" if name == "qwen2" else "50GB")
    return model
