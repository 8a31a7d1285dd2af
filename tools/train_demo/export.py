"""Writes the demo model as a GGUF file with Q8_0 matrices."""

from __future__ import annotations

import json
from pathlib import Path

import corpus
import gguf
import numpy as np
from model import Model
from tokenizers import Tokenizer

DESCRIPTION = (
    "A model of 3.6 million weights that answers short questions (capitals, small sums, opposites, days and months, "
    "colours), tells short stories, writes JSON objects, calls tools and copies text. Made for tests and first steps."
)


def write(model: Model, tokenizer: Tokenizer, path: Path) -> None:
    """Writes metadata, vocabulary and weights; matrices as Q8_0, norms as float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, model)
    _add_tokenizer(writer, tokenizer)
    for name, weight in _tensors(model).items():
        if weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, model: Model) -> None:
    sizes = model.sizes
    writer.add_name("runtime demo")
    writer.add_description(DESCRIPTION)
    writer.add_license("Apache-2.0")
    # The model answers with facts: choosing at random among near misses would help nobody's first minute.
    writer.add_float32("general.sampling.temp", 0.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(sizes.max_model_len)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_feed_forward_length(sizes.intermediate_size)
    writer.add_block_count(sizes.num_layers)
    writer.add_head_count(sizes.num_heads)
    writer.add_head_count_kv(sizes.num_kv_heads)
    writer.add_layer_norm_rms_eps(sizes.rms_norm_eps)
    writer.add_rope_freq_base(sizes.rope_theta)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_vocab_size(sizes.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    state = json.loads(tokenizer.to_str())
    special = {token["id"] for token in state["added_tokens"]}
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    kinds = [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id(corpus.BOS))
    writer.add_eos_token_id(tokenizer.token_to_id(corpus.END))
    writer.add_pad_token_id(tokenizer.token_to_id(corpus.PAD))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(corpus.CHAT_TEMPLATE)


def _tensors(model: Model) -> dict[str, np.ndarray]:
    sizes = model.sizes
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    tensors = {"token_embd.weight": weights["embed_tokens.weight"], "output_norm.weight": weights["norm.weight"]}
    width, kv = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    for i in range(sizes.num_layers):
        own = {name.split(".", 2)[2]: value for name, value in weights.items() if name.startswith(f"layers.{i}.")}
        q, k, v = np.split(own["qkv_proj.weight"], [width, width + kv])
        gate, up = np.split(own["gate_up_proj.weight"], 2)
        tensors |= {
            f"blk.{i}.attn_norm.weight": own["input_norm.weight"],
            f"blk.{i}.attn_q.weight": _interleave(q, sizes.num_heads),
            f"blk.{i}.attn_k.weight": _interleave(k, sizes.num_kv_heads),
            f"blk.{i}.attn_v.weight": v,
            f"blk.{i}.attn_output.weight": own["o_proj.weight"],
            f"blk.{i}.ffn_norm.weight": own["post_norm.weight"],
            f"blk.{i}.ffn_gate.weight": gate,
            f"blk.{i}.ffn_up.weight": up,
            f"blk.{i}.ffn_down.weight": own["down_proj.weight"],
        }
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


def _interleave(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a head from half-split to interleaved pairs: the rotary order of llama files in GGUF."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
