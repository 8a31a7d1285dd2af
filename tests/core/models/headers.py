"""Headers of model files as plain data: metadata and tensor specs, without bytes."""

from __future__ import annotations

from typing import Any

from runtime.dtypes import FORMATS, TensorSpec

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 64, 96, 4, 2, 16, 131


def spec(fmt: str, *shape: int) -> TensorSpec:
    return TensorSpec(FORMATS[fmt], shape)


def llama_gguf(num_layers: int = 2, fmt: str = "q8_0") -> tuple[dict[str, Any], dict[str, TensorSpec]]:
    """A llama GGUF header as llama.cpp's converter writes it."""
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": num_layers,
        "llama.context_length": 512,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 500000.0,
    }
    tensors = {
        "token_embd.weight": spec(fmt, VOCAB, HIDDEN),
        "output_norm.weight": spec("f32", HIDDEN),
        "output.weight": spec(fmt, VOCAB, HIDDEN),
    }
    for i in range(num_layers):
        tensors |= {
            f"blk.{i}.attn_norm.weight": spec("f32", HIDDEN),
            f"blk.{i}.attn_q.weight": spec(fmt, HEADS * HEAD_DIM, HIDDEN),
            f"blk.{i}.attn_k.weight": spec(fmt, KV_HEADS * HEAD_DIM, HIDDEN),
            f"blk.{i}.attn_v.weight": spec(fmt, KV_HEADS * HEAD_DIM, HIDDEN),
            f"blk.{i}.attn_output.weight": spec(fmt, HIDDEN, HEADS * HEAD_DIM),
            f"blk.{i}.ffn_norm.weight": spec("f32", HIDDEN),
            f"blk.{i}.ffn_gate.weight": spec(fmt, INNER, HIDDEN),
            f"blk.{i}.ffn_up.weight": spec(fmt, INNER, HIDDEN),
            f"blk.{i}.ffn_down.weight": spec(fmt, HIDDEN, INNER),
        }
    return metadata, tensors


def hf_config(model_type: str, class_name: str, **fields: Any) -> dict[str, Any]:
    """A config.json with the sizes above."""
    return {
        "model_type": model_type,
        "architectures": [class_name],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        **fields,
    }
