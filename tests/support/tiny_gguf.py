"""Writes the weights of a tiny Hugging Face directory as GGUF, with the conventions of llama.cpp's converter.

Tensor names come from the gguf package's own tables. What the converter does to values, per architecture:
  llama family    rows of q and k permuted per head, so that rotary pairs become neighbours
  gemma           1 added to every norm weight
  experts         stacked to [E, out, in]
  gpt-oss         gate and up, interleaved columns in the source, taken apart and transposed
  llama3, phi3    rotary divisors as tensors
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "granite": "granite",
    "smollm3": "smollm3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt-oss",
}
_PERMUTED = ("llama", "granite", "smollm3")
_EXPERT_PARTS = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "down_proj": "down", "up_proj": "up"}


def write_gguf(folder: Path, path: Path) -> None:
    """Convert the directory `folder` to the file `path`, float32."""
    config = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, arch)
    _write_sizes(writer, config, arch)
    _write_rope(writer, config, arch)
    tensors = _read_tensors(folder)
    for name, array in _named(config, arch, _converted(config, arch, tensors)).items():
        writer.add_tensor(name, np.ascontiguousarray(array, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    return tensors


def _write_sizes(w: gguf.GGUFWriter, c: dict[str, Any], arch: str) -> None:
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    if c.get("head_dim") and arch != "granite":
        w.add_key_length(c["head_dim"])
        w.add_value_length(c["head_dim"])
    experts = c.get("num_experts") or c.get("num_local_experts")
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(c["num_experts_per_tok"])
    if c.get("moe_intermediate_size"):
        w.add_expert_feed_forward_length(c["moe_intermediate_size"])
    if c.get("shared_expert_intermediate_size"):
        w.add_expert_shared_feed_forward_length(c["shared_expert_intermediate_size"])
    if arch == "gpt-oss":
        w.add_expert_feed_forward_length(c["intermediate_size"])
    if arch in ("gemma2", "gemma3", "gpt-oss", "phi3"):
        w.add_sliding_window(c["sliding_window"] or 0)
    if arch == "gemma2":
        w.add_attn_logit_softcapping(c["attn_logit_softcapping"])
        w.add_final_logit_softcapping(c["final_logit_softcapping"])
    if arch == "granite":
        w.add_attention_scale(c["attention_multiplier"])
        w.add_embedding_scale(c["embedding_multiplier"])
        w.add_residual_scale(c["residual_multiplier"])
        w.add_logit_scale(c["logits_scaling"])


def _write_rope(w: gguf.GGUFWriter, c: dict[str, Any], arch: str) -> None:
    rope = c["rope_parameters"]
    rope = rope.get("full_attention", rope)
    head_dim = _head_dim(c)
    w.add_rope_freq_base(rope["rope_theta"])
    w.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        scale = c["max_position_embeddings"] / original
        w.add_rope_scaling_orig_ctx_len(original)
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0)
        w.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], dtype=np.float32))
        w.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], dtype=np.float32))
    if rope["rope_type"] == "llama3":
        w.add_tensor("rope_freqs.weight", _llama3_divisors(rope, head_dim))


def _llama3_divisors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    original = rope["original_max_position_embeddings"]
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


def _head_dim(c: dict[str, Any]) -> int:
    return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]


def _converted(c: dict[str, Any], arch: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values as the converter writes them, under Hugging Face names (experts stacked)."""
    result: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, array in tensors.items():
        if arch in _PERMUTED and ".self_attn.q_proj." in name:
            array = _permuted(array, c["num_attention_heads"])
        elif arch in _PERMUTED and ".self_attn.k_proj." in name:
            array = _permuted(array, c["num_key_value_heads"])
        elif arch.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        if ".mlp.experts." in name and arch == "gpt-oss":
            result.update(_gpt_oss_expert(name, array))
        elif ".experts." in name:
            stem, rest = name.split(".experts.")
            index, part, _ = rest.split(".")
            experts.setdefault(f"{stem}.experts.{part}.weight", {})[int(index)] = array
        else:
            result[name] = array
    for name, parts in experts.items():
        result[name] = np.stack([parts[i] for i in range(len(parts))])
    return result


def _permuted(array: np.ndarray, heads: int) -> np.ndarray:
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _gpt_oss_expert(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    stem, part = name.rsplit(".", 1)
    suffix = "bias" if part.endswith("_bias") else "weight"
    if suffix == "weight":
        array = array.swapaxes(1, 2)
    if part.startswith("down_proj"):
        return {f"{stem}.down_proj.{suffix}": array}
    return {f"{stem}.gate_proj.{suffix}": array[:, ::2], f"{stem}.up_proj.{suffix}": array[:, 1::2]}


def _named(c: dict[str, Any], arch: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    model_arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(model_arch, c["num_hidden_layers"])
    result = {}
    for name, array in tensors.items():
        if name.endswith(".sinks"):
            name += ".weight"
        if name.endswith("block_sparse_moe.gate.weight"):
            result[names.get_name(name, try_suffixes=(".weight",))] = array
            continue
        if ".experts." in name:
            layer = name.split(".")[2]
            part, suffix = name.split(".")[-2:]
            result[f"blk.{layer}.ffn_{_EXPERT_PARTS[part]}_exps.{suffix}"] = array
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        result[target] = array
    return result


def unstack_experts(source: Path, path: Path) -> None:
    """Copy a GGUF file of the llama architecture with one tensor per expert, as files of early 2024 have them."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if "_exps." not in tensor.name:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        for expert, matrix in enumerate(np.array(tensor.data)):
            writer.add_tensor(tensor.name.replace("_exps.", f".{expert}."), matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
