"""Reads a ModelSpec out of GGUF metadata, following the keys that llama.cpp's converter writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runtime.dtypes import TensorSpec
from runtime.errors import MalformedFile, Unsupported
from runtime.models.fields import Fields
from runtime.models.rope import attention_factor
from runtime.models.spec import ExpertSpec, LayerSpec, ModelSpec, RopeKind, RopeParameters
from runtime.models.traits import MAX_EXPERTS, MAX_LAYERS, Architecture, Presence

_SCORES = {1: "softmax", 2: "sigmoid", 3: "softmax_selected"}
"""Values of `expert_gating_func`."""


def spec_from_gguf(row: Architecture, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> ModelSpec:
    """The spec of a GGUF model whose architecture is `row`; raises MalformedFile where a key is missing or wrong."""
    arch = metadata["general.architecture"]
    keys = Fields(metadata, "GGUF metadata", f"{arch}.")
    hidden_size, num_heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden_size // num_heads)
    value_dim = keys.integer("attention.value_length", head_dim)
    if value_dim != head_dim:
        raise Unsupported(f"heads of keys ({head_dim}) and values ({value_dim}) of different sizes are not supported")
    num_layers = keys.integer("block_count", most=MAX_LAYERS)
    ropes = _ropes(row, keys, head_dim, tensors)
    experts = _experts(row, keys, tensors)
    return ModelSpec(
        architecture=row.name,
        kind="gguf",
        hidden_size=hidden_size,
        intermediate_size=_intermediate_size(keys, experts),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=keys.integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        vocab_size=_vocab_size(metadata, keys, tensors),
        max_model_len=keys.integer("context_length"),
        rms_norm_eps=keys.positive("attention.layer_norm_rms_epsilon"),
        layers=_layers(row, keys, num_layers, tensors, local="local" in ropes),
        ropes=ropes,
        attention_scale=_attention_scale(row, keys, hidden_size, num_heads, head_dim, num_layers),
        activation=row.activation,
        rope_interleaved=row.interleaved_gguf,
        qkv_bias=_has(row.qkv_bias, tensors, "blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),
        o_bias=_has(row.o_bias, tensors, "blk.0.attn_output.bias"),
        mlp_bias=_has(row.mlp_bias, tensors, "blk.0.ffn_down.bias"),
        qk_norm=row.qk_norm,
        post_norms=row.post_norms,
        sinks=row.sinks,
        embed_scale=_embed_scale(row, keys, hidden_size),
        residual_multiplier=keys.number("residual_scale", 1.0) if row.multipliers else 1.0,
        logits_multiplier=1.0 / keys.positive("logit_scale", 1.0) if row.multipliers else 1.0,
        attention_softcap=keys.number("attn_logit_softcapping", row.hf_defaults.get("attn_logit_softcapping", 0.0)),
        logits_softcap=keys.number("final_logit_softcapping", row.hf_defaults.get("final_logit_softcapping", 0.0)),
        experts=experts,
        tie_word_embeddings="output.weight" not in tensors,
        tensors=tensors,
    )


def _vocab_size(metadata: Mapping[str, Any], keys: Fields, tensors: Mapping[str, TensorSpec]) -> int:
    embedding = tensors.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2:
        return embedding.resolve({})[0]
    tokens = Fields(metadata, "GGUF metadata").items("tokenizer.ggml.tokens", default=())
    return len(tokens) if len(tokens) else keys.integer("vocab_size")


def _intermediate_size(keys: Fields, experts: ExpertSpec | None) -> int:
    if experts is not None and not keys.has("feed_forward_length"):
        return experts.intermediate_size
    return keys.integer("feed_forward_length", least=0 if experts is not None else 1)


def _embed_scale(row: Architecture, keys: Fields, hidden_size: int) -> float:
    if row.embed_scale == "sqrt_hidden_size":
        return math.sqrt(hidden_size)
    return keys.number("embedding_scale", 1.0) if row.embed_scale == "field" else 1.0


def _attention_scale(
    row: Architecture, keys: Fields, hidden_size: int, num_heads: int, head_dim: int, num_layers: int
) -> float:
    stated = keys.number("attention.scale", 0.0)
    if stated:
        return stated
    per_head = hidden_size // num_heads if num_layers in row.wide_layers_gguf else head_dim
    return 1.0 / math.sqrt(per_head)


def _layers(
    row: Architecture, keys: Fields, num_layers: int, tensors: Mapping[str, TensorSpec], *, local: bool
) -> tuple[LayerSpec, ...]:
    window = keys.integer("attention.sliding_window", 0, least=0) if row.window != "none" else 0
    slides = _sliding(row, keys, num_layers)
    layers = []
    for i in range(num_layers):
        rope: str | None = "local" if local and slides[i] else "default"
        if row.no_rope_period and (i + 1) % row.no_rope_period == 0:
            rope = None
        sparse = row.experts != "no" and f"blk.{i}.ffn_gate_inp.weight" in tensors
        layers.append(LayerSpec(window=window if slides[i] else 0, rope=rope, sparse=sparse))
    return tuple(layers)


def _sliding(row: Architecture, keys: Fields, num_layers: int) -> list[bool]:
    key = "attention.sliding_window_pattern"
    pattern = keys.raw(key, None) if row.window != "none" else None
    if pattern is not None and not isinstance(pattern, int):
        return [bool(v) for v in keys.numbers(key, num_layers)]
    if row.window == "period":
        period = keys.integer(key, row.window_period)
        return [(i + 1) % period != 0 for i in range(num_layers)]
    return [row.window == "all"] * num_layers


def _experts(row: Architecture, keys: Fields, tensors: Mapping[str, TensorSpec]) -> ExpertSpec | None:
    count = keys.integer("expert_count", 0, least=0, most=MAX_EXPERTS) if row.experts != "no" else 0
    if not count:
        if row.experts == "yes":
            raise MalformedFile(f"GGUF metadata: architecture {row.name} needs '{keys.prefix}expert_count' above 0")
        return None
    top_k = keys.integer("expert_used_count")
    if top_k > count:
        raise MalformedFile(f"GGUF metadata: {top_k} experts are used per token, but there are only {count}")
    gating = keys.integer("expert_gating_func", 0, least=0)
    if gating and gating not in _SCORES:
        raise Unsupported(f"expert gating function {gating} is unknown; known: {_SCORES}")
    score: Any = _SCORES[gating] if gating else row.expert_score
    if keys.number("expert_weights_scale", 1.0) not in (0.0, 1.0):
        raise Unsupported(f"expert weights scaled by {keys.number('expert_weights_scale')} are not supported")
    return ExpertSpec(
        count=count,
        top_k=top_k,
        intermediate_size=_expert_size(keys, tensors),
        score=score,
        normalize=keys.flag("expert_weights_norm", row.expert_normalize),
        bias=row.expert_bias,
        shared_intermediate_size=_shared_size(keys, tensors) if row.shared_expert else 0,
    )


def _expert_size(keys: Fields, tensors: Mapping[str, TensorSpec]) -> int:
    """Stated, or the row count of an expert's gate, or the dense size (Mixtral has only that)."""
    if keys.has("expert_feed_forward_length"):
        return keys.integer("expert_feed_forward_length")
    for name, spec in tensors.items():
        if name.endswith("ffn_gate_exps.weight") and len(spec.shape) == 3:
            return spec.resolve({})[1]
    return keys.integer("feed_forward_length")


def _shared_size(keys: Fields, tensors: Mapping[str, TensorSpec]) -> int:
    if keys.has("expert_shared_feed_forward_length"):
        return keys.integer("expert_shared_feed_forward_length")
    for name, spec in tensors.items():
        if name.endswith("ffn_gate_shexp.weight") and len(spec.shape) == 2:
            return spec.resolve({})[0]
    return keys.integer("feed_forward_length")


def _ropes(
    row: Architecture, keys: Fields, head_dim: int, tensors: Mapping[str, TensorSpec]
) -> dict[str, RopeParameters]:
    rotary_dim = keys.integer("rope.dimension_count", head_dim)
    context = keys.integer("context_length")
    theta = keys.number("rope.freq_base", row.rope_theta)
    original = keys.integer("rope.scaling.original_context_length", context)
    plain = RopeParameters(theta, rotary_dim, max_position_embeddings=context)
    if "rope_factors_long.weight" in tensors:
        default = RopeParameters(
            theta,
            rotary_dim,
            "longrope",
            max_position_embeddings=context,
            original_max_position_embeddings=original,
            attention_factor=keys.number("rope.scaling.attn_factor", 1.0),
            short_tensor="rope_factors_short.weight",
            long_tensor="rope_factors_long.weight",
        )
    elif "rope_freqs.weight" in tensors:
        default = RopeParameters(theta, rotary_dim, max_position_embeddings=context, factors_tensor="rope_freqs.weight")
    else:
        default = _scaled(row, keys, theta, rotary_dim, context, original)
    if row.local_theta is None:
        return {"default": default}
    local = RopeParameters(keys.number("rope.freq_base_swa", row.local_theta), plain.rotary_dim)
    return {"default": default, "local": local}


def _scaled(
    row: Architecture, keys: Fields, theta: float, rotary_dim: int, context: int, original: int
) -> RopeParameters:
    legacy = keys.number("rope.scale_linear", 1.0)
    kind = keys.text("rope.scaling.type", "linear" if legacy != 1.0 else "none")
    factor = keys.number("rope.scaling.factor", legacy) or 1.0
    kinds: dict[str, RopeKind] = {"none": "default", "linear": "linear", "yarn": "yarn", "longrope": "default"}
    if kind not in kinds:
        raise Unsupported(f"rope scaling '{kind}' is not supported; supported in GGUF: {', '.join(kinds)}")
    params = RopeParameters(
        theta,
        rotary_dim,
        kinds[kind],
        factor=factor,
        max_position_embeddings=context,
        original_max_position_embeddings=original,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        truncate=row.rope_truncate,
    )
    extra = keys.number("rope.scaling.yarn_attn_factor", keys.number("rope.scaling.attn_factor", 1.0))
    if params.kind != "yarn" or extra == 1.0:
        return params
    return replace(params, attention_factor=extra * attention_factor(params))


def _has(presence: Presence, tensors: Mapping[str, TensorSpec], *names: str) -> bool:
    return presence == "yes" or (presence == "optional" and any(name in tensors for name in names))
