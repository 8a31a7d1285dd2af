"""Reads a ModelSpec out of a Hugging Face config.json, in the old and the new spelling of its fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from runtime.dtypes import TensorSpec
from runtime.errors import MalformedFile, Unsupported
from runtime.models.fields import Fields
from runtime.models.spec import ExpertSpec, LayerSpec, ModelSpec, RopeKind, RopeParameters
from runtime.models.traits import MAX_EXPERTS, MAX_LAYERS, Architecture, Presence

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_ROPE_KINDS: dict[str, RopeKind] = {
    "default": "default",
    "linear": "linear",
    "dynamic": "dynamic",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
}


def spec_from_hf(row: Architecture, config: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> ModelSpec:
    """The spec of a directory with this config.json; raises MalformedFile where a field is missing or wrong."""
    text = Fields(config, "config.json").mapping("text_config")
    keys = Fields({**row.hf_defaults, **(text or config)}, "config.json")
    _refuse_what_is_not_there(config, keys)
    hidden_size, num_heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    num_layers = keys.integer("num_hidden_layers", most=MAX_LAYERS)
    head_dim = keys.integer("head_dim", hidden_size // num_heads)
    ropes = _ropes(row, keys, head_dim)
    experts = _experts(row, keys)
    return ModelSpec(
        architecture=row.name,
        kind="hf",
        hidden_size=hidden_size,
        intermediate_size=keys.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=keys.integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        vocab_size=keys.integer("vocab_size"),
        max_model_len=keys.integer("max_position_embeddings"),
        rms_norm_eps=keys.positive("rms_norm_eps"),
        layers=_layers(row, keys, num_layers, local="local" in ropes),
        ropes=ropes,
        attention_scale=_attention_scale(row, keys, head_dim),
        activation=_activation(row, keys),
        activation_alpha=keys.number("swiglu_alpha", 1.702),
        activation_limit=keys.number("swiglu_limit", 7.0),
        norm_weight_offset=row.norm_offset_hf,
        qkv_bias=_has(row.qkv_bias, tensors, "layers.0.self_attn.q_proj.bias"),
        o_bias=_has(row.o_bias, tensors, "layers.0.self_attn.o_proj.bias"),
        mlp_bias=_has(row.mlp_bias, tensors, "layers.0.mlp.down_proj.bias"),
        qk_norm=row.qk_norm,
        post_norms=row.post_norms,
        sinks=row.sinks,
        embed_scale=_embed_scale(row, keys, hidden_size),
        residual_multiplier=keys.positive("residual_multiplier") if row.multipliers else 1.0,
        logits_multiplier=1.0 / keys.positive("logits_scaling") if row.multipliers else 1.0,
        attention_softcap=keys.number("attn_logit_softcapping", 0.0),
        logits_softcap=keys.number("final_logit_softcapping", 0.0),
        experts=experts,
        tie_word_embeddings=_is_tied(config, keys, tensors),
        tensors=tensors,
    )


def _refuse_what_is_not_there(config: Mapping[str, Any], keys: Fields) -> None:
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method == "compressed-tensors" and isinstance(quantization, Mapping):
        is_fp8 = quantization.get("format") == "float-quantized"
        method = "fp8" if is_fp8 else f"{method}' in the format '{quantization.get('format')}"
    if method not in (None, "mxfp4", "fp8", "fbgemm_fp8"):
        raise Unsupported(
            f"weights quantized with '{method}' are not supported in safetensors",
            remedy="use the unquantized model, or a GGUF file of it",
        )
    if keys.flag("use_bidirectional_attention", False):
        raise Unsupported("models with bidirectional attention do not generate text")


def _is_tied(config: Mapping[str, Any], keys: Fields, tensors: Mapping[str, TensorSpec]) -> bool:
    stated = keys.raw("tie_word_embeddings", config.get("tie_word_embeddings"))
    if stated is None:
        return not any(name.endswith("lm_head.weight") for name in tensors)
    return bool(stated)


def _activation(row: Architecture, keys: Fields) -> str:
    if row.activation != "silu":
        return row.activation
    name = keys.text("hidden_act", "silu")
    if name not in _ACTIVATIONS:
        raise Unsupported(f"activation '{name}' is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _embed_scale(row: Architecture, keys: Fields, hidden_size: int) -> float:
    if row.embed_scale == "sqrt_hidden_size":
        return math.sqrt(hidden_size)
    return keys.positive("embedding_multiplier") if row.embed_scale == "field" else 1.0


def _attention_scale(row: Architecture, keys: Fields, head_dim: int) -> float:
    if row.query_scale == "attention_multiplier":
        return keys.positive("attention_multiplier")
    if row.query_scale == "query_pre_attn_scalar":
        return 1.0 / math.sqrt(keys.positive("query_pre_attn_scalar"))
    return 1.0 / math.sqrt(head_dim)


def _layers(row: Architecture, keys: Fields, num_layers: int, *, local: bool) -> tuple[LayerSpec, ...]:
    slides = _sliding(row, keys, num_layers)
    window = keys.integer("sliding_window", 0, least=0)
    rotates = _rotating(row, keys, num_layers)
    sparse = _sparse(row, keys, num_layers)
    return tuple(
        LayerSpec(
            window=window if slides[i] else 0,
            rope=("local" if local and slides[i] else "default") if rotates[i] else None,
            sparse=sparse[i],
        )
        for i in range(num_layers)
    )


def _sliding(row: Architecture, keys: Fields, num_layers: int) -> list[bool]:
    if keys.has("layer_types"):
        types = [str(t) for t in keys.items("layer_types", num_layers)]
        known = {"full_attention": False, "sliding_attention": True}
        unknown = sorted(set(types) - set(known))
        if unknown:
            raise Unsupported(f"layers of type {', '.join(unknown)} are not supported; supported: {', '.join(known)}")
        return [known[t] for t in types]
    if row.window == "all":
        return [True] * num_layers
    if row.window == "period":
        period = keys.integer("sliding_window_pattern", row.window_period)
        return [(i + 1) % period != 0 for i in range(num_layers)]
    if keys.flag("use_sliding_window", False) and not row.no_rope_period:
        first = keys.integer("max_window_layers", 0, least=0)
        return [i >= first for i in range(num_layers)]
    return [False] * num_layers


def _rotating(row: Architecture, keys: Fields, num_layers: int) -> list[bool]:
    if not row.no_rope_period:
        return [True] * num_layers
    if keys.has("no_rope_layers"):
        return [bool(v) for v in keys.numbers("no_rope_layers", num_layers)]
    period = keys.integer("no_rope_layer_interval", row.no_rope_period)
    return [(i + 1) % period != 0 for i in range(num_layers)]


def _sparse(row: Architecture, keys: Fields, num_layers: int) -> list[bool]:
    if row.experts != "yes":
        return [False] * num_layers
    dense = {str(i) for i in keys.items("mlp_only_layers", default=())}
    step = keys.integer("decoder_sparse_step", 1)
    return [str(i) not in dense and (i + 1) % step == 0 for i in range(num_layers)]


def _experts(row: Architecture, keys: Fields) -> ExpertSpec | None:
    if row.experts != "yes":
        return None
    count = keys.integer("num_experts" if keys.has("num_experts") else "num_local_experts", most=MAX_EXPERTS)
    top_k = keys.integer("num_experts_per_tok")
    if top_k > count:
        raise MalformedFile(f"config.json: num_experts_per_tok {top_k} exceeds the number of experts, {count}")
    return ExpertSpec(
        count=count,
        top_k=top_k,
        intermediate_size=keys.integer("moe_intermediate_size", keys.integer("intermediate_size")),
        score=row.expert_score,
        normalize=keys.flag("norm_topk_prob", row.expert_normalize),
        bias=row.expert_bias,
        shared_intermediate_size=keys.integer("shared_expert_intermediate_size") if row.shared_expert else 0,
    )


def _ropes(row: Architecture, keys: Fields, head_dim: int) -> dict[str, RopeParameters]:
    stated = keys.mapping("rope_parameters")
    if "full_attention" in stated:
        by_layer = Fields(stated, "config.json rope_parameters")
        kinds = {"default": "full_attention", "local": "sliding_attention"}
        return {name: _rope(row, keys, head_dim, by_layer.mapping(kind)) for name, kind in kinds.items()}
    default = {"rope_theta": keys.raw("rope_theta", None), **keys.mapping("rope_scaling"), **stated}
    ropes = {"default": _rope(row, keys, head_dim, default)}
    if row.local_theta is not None:
        local = {"rope_theta": keys.number("rope_local_base_freq", row.local_theta)}
        ropes["local"] = _rope(row, keys, head_dim, local)
    return ropes


def _rope(row: Architecture, keys: Fields, head_dim: int, fields: Mapping[str, Any]) -> RopeParameters:
    rope = Fields(fields, "config.json rope_parameters")
    name = rope.text("rope_type", rope.text("type", "default"))
    kind = _ROPE_KINDS.get(name)
    if kind is None:
        raise Unsupported(f"rope scaling '{name}' is not supported; supported: {', '.join(_ROPE_KINDS)}")
    partial = rope.number("partial_rotary_factor", keys.number("partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * partial)
    context = keys.integer("max_position_embeddings")
    original = keys.integer("original_max_position_embeddings", context)

    def optional(key: str) -> float | None:
        return rope.number(key) if rope.has(key) else None

    long = kind == "longrope"
    return RopeParameters(
        theta=rope.number("rope_theta", row.rope_theta),
        rotary_dim=rotary_dim,
        kind=kind,
        factor=optional("factor"),
        max_position_embeddings=context,
        original_max_position_embeddings=rope.integer("original_max_position_embeddings", original),
        low_freq_factor=rope.number("low_freq_factor", 1.0),
        high_freq_factor=rope.number("high_freq_factor", 4.0),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
        attention_factor=optional("attention_factor"),
        mscale=optional("mscale"),
        mscale_all_dim=optional("mscale_all_dim"),
        short_factor=rope.numbers("short_factor", rotary_dim // 2) if long else (),
        long_factor=rope.numbers("long_factor", rotary_dim // 2) if long else (),
    )


def _has(presence: Presence, tensors: Mapping[str, TensorSpec], suffix: str) -> bool:
    return presence == "yes" or (presence == "optional" and any(name.endswith(suffix) for name in tensors))
