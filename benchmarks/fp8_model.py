"""Writes a directory as FP8 checkpoints of Hugging Face are: matrices in F8_E4M3 with a scale for each row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from models import Shape

from runtime.dtypes import FORMATS, encode

POOL_ELEMENTS = (1 << 23) - 15
"""Of random codes, which larger tensors repeat: a prime number, so that rows differ."""
CODE_STD = 16.0
_EXACT = ("embed_tokens", "lm_head", "mlp.gate.weight")


def write_fp8_model(folder: Path, shape: Shape, config: dict[str, Any], seed: int = 0) -> None:
    """`config` is that of transformers. Embeddings, the matrix of logits and routers are bf16, norms are f32."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config | {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    _write_tokenizer(folder / "tokenizer.json")
    entries: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, sizes in _tensors(shape).items():
        is_fp8 = len(sizes) == 2 and not any(part in name for part in _EXACT)
        entries[name] = ("F8_E4M3" if is_fp8 else "BF16" if len(sizes) == 2 else "F32", sizes)
        if is_fp8:
            entries[f"{name}_scale"] = ("F32", (sizes[0], 1))
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, sizes) in entries.items():
        start, end = end, end + math.prod(sizes) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": sizes, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(POOL_ELEMENTS).astype(np.float32)
    codes = encode(FORMATS["f8_e4m3"], values * CODE_STD)
    halves = encode(FORMATS["bf16"], values / math.sqrt(shape.hidden_size))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, sizes) in entries.items():
            if dtype == "F32":
                scale = 1 / (CODE_STD * math.sqrt(entries[name.removesuffix("_scale")][1][-1]))
                file.write(np.full(sizes, scale if name.endswith("_scale") else 1.0, "<f4").tobytes())
            else:
                _repeat(file, codes if dtype == "F8_E4M3" else halves, math.prod(sizes) * (1 + (dtype == "BF16")))


def _repeat(file: BinaryIO, pool: bytes, nbytes: int) -> None:
    while nbytes > 0:
        nbytes -= file.write(pool[: min(nbytes, len(pool))])


def _tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    hidden, inner, d = shape.hidden_size, shape.intermediate_size, shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not shape.tied:
        tensors["lm_head.weight"] = (shape.vocab_size, hidden)
    for i in range(shape.num_layers):
        layer = f"model.layers.{i}."
        tensors |= {f"{layer}{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for part, heads in (("q", shape.num_heads), ("k", shape.num_kv_heads), ("v", shape.num_kv_heads)):
            tensors[f"{layer}self_attn.{part}_proj.weight"] = (heads * d, hidden)
        tensors[f"{layer}self_attn.o_proj.weight"] = (hidden, shape.num_heads * d)
        if shape.qk_norm:
            tensors |= {f"{layer}self_attn.{x}_norm.weight": (d,) for x in "qk"}
        if shape.num_experts:
            tensors[f"{layer}mlp.gate.weight"] = (shape.num_experts, hidden)
        experts = [f"experts.{e}." for e in range(shape.num_experts)] or [""]
        for expert in experts:
            tensors |= {f"{layer}mlp.{expert}{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
            tensors[f"{layer}mlp.{expert}down_proj.weight"] = (hidden, inner)
    return tensors


def _write_tokenizer(path: Path) -> None:
    """Bytes, each a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(path))
