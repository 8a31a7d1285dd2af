"""The table of architectures: one row of traits for each; a new member of a family is a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_LAYERS = 1024
MAX_EXPERTS = 4096
"""More than any model has; a corrupt header must not make us build millions."""

Presence = Literal["no", "yes", "optional"]
"""Whether a bias exists: never, always, or where the file has the tensor."""


@dataclass(frozen=True)
class Architecture:
    """One row.

    gguf             values of `general.architecture`
    hf               values of `model_type` in config.json
    hf_classes       values of `architectures` in config.json
    hf_defaults      what config.json may leave out (the defaults of the model's published configuration class)
    norm_offset_hf   added to norm weights of safetensors; llama.cpp's converter has already added it in GGUF
    interleaved_gguf rotary pairs are (2i, 2i+1) in GGUF, as the converter permutes q and k; safetensors keep halves
    window           which layers slide: "all", or those whose index is not the last of each `window_period`;
                     config.json's `layer_types` goes before this
    local_theta      rotary base of sliding layers where it differs from the others
    rope_truncate    whether YaRN's ramp has whole-numbered ends
    no_rope_period   every n-th layer does not rotate
    query_scale      attention scale: of the head, or of `query_pre_attn_scalar`
    wide_layers_gguf numbers of layers of the sizes whose scale is hidden_size / num_heads, which GGUF does not say
    fused            gate and up are one tensor, which GGUF calls ffn_up
    experts_columns  safetensors hold experts as [E, in, out] with gate and up columns interleaved
    """

    name: str
    gguf: tuple[str, ...]
    hf: tuple[str, ...]
    hf_classes: tuple[str, ...]
    hf_defaults: Mapping[str, Any] = field(default_factory=dict)
    activation: str = "silu"
    norm_offset_hf: float = 0.0
    interleaved_gguf: bool = False
    qkv_bias: Presence = "no"
    o_bias: Presence = "no"
    mlp_bias: Presence = "no"
    qk_norm: bool = False
    post_norms: bool = False
    sinks: bool = False
    embed_scale: Literal["one", "sqrt_hidden_size", "field"] = "one"
    multipliers: bool = False
    query_scale: Literal["head_dim", "query_pre_attn_scalar", "attention_multiplier"] = "head_dim"
    wide_layers_gguf: tuple[int, ...] = ()
    window: Literal["none", "all", "period"] = "none"
    window_period: int = 0
    local_theta: float | None = None
    rope_theta: float = 10000.0
    rope_truncate: bool = True
    no_rope_period: int = 0
    experts: Literal["no", "yes", "optional"] = "no"
    expert_score: Literal["softmax", "softmax_selected"] = "softmax"
    expert_normalize: bool = True
    expert_bias: bool = False
    experts_columns: bool = False
    shared_expert: bool = False
    fused: bool = False


_LLAMA_BIAS: dict[str, Any] = {"qkv_bias": "optional", "o_bias": "optional", "mlp_bias": "optional"}
_GEMMA: dict[str, Any] = {
    "activation": "gelu_tanh",
    "norm_offset_hf": 1.0,
    "embed_scale": "sqrt_hidden_size",
}
_GEMMA_DEFAULTS: dict[str, Any] = {"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "head_dim": 256}

ROWS: tuple[Architecture, ...] = (
    Architecture(
        "llama",
        ("llama",),
        ("llama",),
        ("LlamaForCausalLM",),
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
        interleaved_gguf=True,
        experts="optional",  # llama.cpp files Mixtral under "llama"
        **_LLAMA_BIAS,
    ),
    Architecture(
        "mistral",
        (),
        ("mistral",),
        ("MistralForCausalLM",),
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 131072},
        window="all",
    ),
    Architecture(
        "mixtral",
        (),
        ("mixtral",),
        ("MixtralForCausalLM",),
        {"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "num_local_experts": 8, "num_experts_per_tok": 2},
        rope_theta=1e6,
        window="all",
        experts="yes",
    ),
    Architecture(
        "qwen2",
        ("qwen2",),
        ("qwen2",),
        ("Qwen2ForCausalLM",),
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "max_window_layers": 28, "use_sliding_window": False},
        qkv_bias="yes",
    ),
    Architecture(
        "qwen3",
        ("qwen3",),
        ("qwen3",),
        ("Qwen3ForCausalLM",),
        {
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "max_window_layers": 28,
            "use_sliding_window": False,
            "head_dim": 128,
        },
        qkv_bias="optional",
        o_bias="optional",
        qk_norm=True,
    ),
    Architecture(
        "qwen2_moe",
        ("qwen2moe",),
        ("qwen2_moe",),
        ("Qwen2MoeForCausalLM",),
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "max_window_layers": 28, "use_sliding_window": False},
        qkv_bias="yes",
        experts="yes",
        expert_normalize=False,
        shared_expert=True,
    ),
    Architecture(
        "qwen3_moe",
        ("qwen3moe",),
        ("qwen3_moe",),
        ("Qwen3MoeForCausalLM",),
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "use_sliding_window": False, "norm_topk_prob": False},
        qkv_bias="optional",
        o_bias="optional",
        qk_norm=True,
        experts="yes",
    ),
    Architecture(
        "phi3",
        ("phi3",),
        ("phi3",),
        ("Phi3ForCausalLM",),
        {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
        window="all",
        fused=True,
    ),
    Architecture(
        "gemma",
        ("gemma",),
        ("gemma",),
        ("GemmaForCausalLM",),
        {**_GEMMA_DEFAULTS, "num_key_value_heads": 16},
        qkv_bias="optional",
        o_bias="optional",
        **_GEMMA,
    ),
    Architecture(
        "gemma2",
        ("gemma2",),
        ("gemma2",),
        ("Gemma2ForCausalLM",),
        {
            **_GEMMA_DEFAULTS,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        qkv_bias="optional",
        o_bias="optional",
        post_norms=True,
        query_scale="query_pre_attn_scalar",
        wide_layers_gguf=(46,),
        window="period",
        window_period=2,
        **_GEMMA,
    ),
    Architecture(
        "gemma3",
        ("gemma3",),
        ("gemma3_text", "gemma3"),
        ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        {
            **_GEMMA_DEFAULTS,
            "max_position_embeddings": 131072,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": 262208,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
        },
        qkv_bias="optional",
        o_bias="optional",
        qk_norm=True,
        post_norms=True,
        query_scale="query_pre_attn_scalar",
        wide_layers_gguf=(62,),
        window="period",
        window_period=6,
        rope_theta=1e6,
        local_theta=1e4,
        **_GEMMA,
    ),
    Architecture(
        "granite",
        ("granite",),
        ("granite",),
        ("GraniteForCausalLM",),
        {
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 2048,
            "embedding_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
        interleaved_gguf=True,
        embed_scale="field",
        multipliers=True,
        query_scale="attention_multiplier",
        **_LLAMA_BIAS,
    ),
    Architecture(
        "smollm3",
        ("smollm3",),
        ("smollm3",),
        ("SmolLM3ForCausalLM",),
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "use_sliding_window": False},
        interleaved_gguf=True,
        rope_theta=2e6,
        no_rope_period=4,
        **_LLAMA_BIAS,
    ),
    Architecture(
        "gpt_oss",
        ("gpt-oss",),
        ("gpt_oss",),
        ("GptOssForCausalLM",),
        {
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "head_dim": 64,
            "sliding_window": 128,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
        },
        activation="swiglu_oai",
        qkv_bias="yes",
        o_bias="yes",
        sinks=True,
        rope_theta=150000.0,
        rope_truncate=False,
        window="period",
        window_period=2,
        experts="yes",
        expert_score="softmax_selected",
        expert_normalize=False,
        expert_bias=True,
        experts_columns=True,
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = {row.name: row for row in ROWS}
"""Rows by name."""
