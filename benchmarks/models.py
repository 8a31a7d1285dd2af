"""Writes GGUF models of real shapes with random weights, in any GGUF format, for measurements without downloads."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from random_blocks import FORMATS, Pools

from runtime.formats import open_model


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `rope_scaling` is (factor, low_freq_factor, high_freq_factor, original context) of Llama 3."""

    arch: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    rope_theta: float
    rms_norm_eps: float = 1e-5
    rope_scaling: tuple[float, float, float, int] | None = None
    qk_norm: bool = False
    tied: bool = True
    num_experts: int = 0
    num_experts_used: int = 0


_LLAMA3 = (32.0, 1.0, 4.0, 8192)
SHAPES: dict[str, Shape] = {
    "llama-3.2-1b": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 5e5, rope_scaling=_LLAMA3),
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 40960, 1e6, 1e-6, qk_norm=True),
    "qwen3-moe-1b": Shape(
        "qwen3moe", 12, 1024, 512, 16, 4, 64, 32768, 40960, 1e6, 1e-6,
        qk_norm=True, tied=False, num_experts=16, num_experts_used=4,
    ),
    "llama-small": Shape("llama", 4, 512, 1024, 8, 2, 64, 2048, 8192, 5e5, rope_scaling=_LLAMA3),
    "llama-wide": Shape("llama", 2, 2048, 8192, 32, 8, 64, 8192, 8192, 5e5, rope_scaling=_LLAMA3),
    "qwen3-small": Shape("qwen3", 4, 512, 1024, 4, 2, 128, 2048, 8192, 1e6, 1e-6, qk_norm=True),
    "qwen3-moe-small": Shape(
        "qwen3moe", 4, 512, 256, 8, 2, 64, 2048, 8192, 1e6, 1e-6,
        qk_norm=True, tied=False, num_experts=8, num_experts_used=2,
    ),
    "llama-tiny": Shape("llama", 2, 256, 512, 4, 2, 64, 512, 2048, 5e5, rope_scaling=_LLAMA3),
    "qwen3-tiny": Shape("qwen3", 2, 256, 512, 4, 2, 64, 512, 2048, 1e6, 1e-6, qk_norm=True),
    "qwen3-moe-tiny": Shape(
        "qwen3moe", 2, 256, 256, 4, 2, 64, 512, 2048, 1e6, 1e-6,
        qk_norm=True, tied=False, num_experts=8, num_experts_used=2,
    ),
}  # fmt: skip
"""The first three have the sizes that their names say (the third is no published model); the others are smaller."""

MIXTURES = {"q4_k_m": Type.Q4_K, "q5_k_m": Type.Q5_K, "q4_k_s": Type.Q4_K, "q5_k_s": Type.Q5_K}
"""Names of mixtures; q4_k_s and q5_k_s are taken without llama.cpp's exceptions for the first layers."""
_LOGIT_STD = 3.0
_BYTE_TOKENS = 256
_UNUSED, _NORMAL, _CONTROL = 5, 1, 3


def write_model(
    path: Path, shape: Shape, fmt: str, *, vocab: Path | None = None, seed: int = 0, pool_bytes: int | None = None
) -> None:
    """Write `shape` with matrices in `fmt` (a GGUF format or a name of `MIXTURES`) to `path`.

    vocab       GGUF file whose tokenizer is taken over; without one: a vocabulary of bytes and unused tokens
    pool_bytes  of random blocks per format and standard deviation; memory is bounded by a few of them

    Norms, routers and rotary divisors are f32. As in llama.cpp's files the matrix that makes the logits is q6_k where
    the format is a quantised one other than q8_0 (q8_0 where q6_k does not fit), and the mixtures `_m` have q6_k for
    attn_v and ffn_down of every layer of `_more_bits`. Raises ValueError where rows do not hold whole blocks.
    """
    writer = gguf.GGUFWriter(path, shape.arch)
    _write_sizes(writer, shape)
    if vocab is None:
        _write_byte_vocabulary(writer, shape.vocab_size)
    else:
        _copy_vocabulary(writer, vocab, shape.vocab_size)
    pools = Pools(seed) if pool_bytes is None else Pools(seed, pool_bytes)
    rng = np.random.default_rng(seed)
    data: list[Any] = []
    for name, sizes in tensor_shapes(shape).items():
        kind, array = Type.F32, _small(name, sizes, shape, rng)
        if array is None:
            kind = format_of(name, sizes, shape, fmt)
            array = pools.tensor(kind, sizes, _std(name, sizes))
        writer.add_tensor_info(name, sizes, np.dtype(np.float32), array.nbytes, raw_dtype=kind)
        data.append(array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in data:
        writer.write_tensor_data(array)
    writer.close()


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Tensor name -> sizes, outermost first, in the order of the file."""
    hidden, q, kv = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab_size, hidden)}
    if not shape.tied:
        tensors["output.weight"] = (shape.vocab_size, hidden)
    tensors["output_norm.weight"] = (hidden,)
    if shape.rope_scaling is not None:
        tensors["rope_freqs.weight"] = (shape.head_dim // 2,)
    for i in range(shape.num_layers):
        layer = f"blk.{i}."
        tensors |= {
            f"{layer}attn_norm.weight": (hidden,),
            f"{layer}attn_q.weight": (q, hidden),
            f"{layer}attn_k.weight": (kv, hidden),
            f"{layer}attn_v.weight": (kv, hidden),
            f"{layer}attn_output.weight": (hidden, q),
            f"{layer}ffn_norm.weight": (hidden,),
        }
        if shape.qk_norm:
            tensors |= {f"{layer}attn_{x}_norm.weight": (shape.head_dim,) for x in "qk"}
        experts: tuple[int, ...] = (shape.num_experts,) if shape.num_experts else ()
        suffix = "_exps" if experts else ""
        if experts:
            tensors[f"{layer}ffn_gate_inp.weight"] = (shape.num_experts, hidden)
        for part in ("gate", "up"):
            tensors[f"{layer}ffn_{part}{suffix}.weight"] = (*experts, shape.intermediate_size, hidden)
        tensors[f"{layer}ffn_down{suffix}.weight"] = (*experts, hidden, shape.intermediate_size)
    return tensors


def format_of(name: str, sizes: tuple[int, ...], shape: Shape, fmt: str) -> Type:
    """The format of a matrix; the rule is described in `write_model`."""
    base = MIXTURES.get(fmt) or FORMATS[fmt]
    if base in (Type.F32, Type.F16, Type.BF16):
        return base
    if name == ("token_embd.weight" if shape.tied else "output.weight"):
        if base is Type.Q8_0 or sizes[-1] % 256:
            return Type.Q8_0
        return Type.Q6_K
    if fmt.endswith("_m") and fmt in MIXTURES and ("attn_v" in name or "ffn_down" in name):
        layer = int(name.split(".")[1])
        return Type.Q6_K if _more_bits(layer, shape.num_layers) else base
    return base


def _more_bits(layer: int, num_layers: int) -> bool:
    """llama.cpp's choice: the first and last eighth of the layers, and every third between."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _std(name: str, sizes: tuple[int, ...]) -> float:
    """Projections keep the size of normalised rows; the output matrix makes logits of a deviation of 3."""
    gain = _LOGIT_STD if name in ("token_embd.weight", "output.weight") else 1.0
    return gain / math.sqrt(sizes[-1])


def _small(name: str, sizes: tuple[int, ...], shape: Shape, rng: np.random.Generator) -> Any:
    """Values of the tensors that are always f32, or None for a matrix."""
    if name == "rope_freqs.weight":
        return _rope_divisors(shape)
    if name.endswith("norm.weight"):
        return (1 + 0.1 * rng.standard_normal(sizes)).astype(np.float32)
    if "ffn_gate_inp" in name:
        return (rng.standard_normal(sizes) * 2 / math.sqrt(sizes[-1])).astype(np.float32)
    return None


def _rope_divisors(shape: Shape) -> Any:
    """Divisors of the rotary frequencies as Llama 3 defines them (its reference implementation, apply_scaling)."""
    assert shape.rope_scaling is not None
    factor, low, high, original = shape.rope_scaling
    wavelengths = 2 * math.pi * shape.rope_theta ** (np.arange(0, shape.head_dim, 2) / shape.head_dim)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _write_sizes(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name("random weights")
    writer.add_quantization_version(2)
    writer.add_context_length(shape.max_model_len)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_vocab_size(shape.vocab_size)
    if shape.num_experts:
        writer.add_expert_count(shape.num_experts)
        writer.add_expert_used_count(shape.num_experts_used)
        writer.add_expert_feed_forward_length(shape.intermediate_size)


def _write_byte_vocabulary(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """Byte-level BPE of 256 bytes and one merge, then unused tokens, then one that begins and one that ends a text."""
    fixed = [*_byte_characters(), "th"]
    unused = vocab_size - len(fixed) - 2
    if unused < 0:
        raise ValueError(f"a vocabulary of bytes needs {len(fixed) + 2} tokens, the shape has {vocab_size}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*fixed, *(f"<|unused_{i}|>" for i in range(unused)), "<|bos|>", "<|eos|>"])
    writer.add_token_types([_NORMAL] * len(fixed) + [_UNUSED] * unused + [_CONTROL] * 2)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(vocab_size - 2)
    writer.add_eos_token_id(vocab_size - 1)
    writer.add_add_bos_token(False)


def _byte_characters() -> Iterator[str]:
    """The alphabet of byte-level BPE (GPT-2): printable bytes are themselves, the others follow from U+0100 on."""
    others = 0
    for byte in range(_BYTE_TOKENS):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            yield chr(byte)
        else:
            yield chr(256 + others)
            others += 1


def _copy_vocabulary(writer: gguf.GGUFWriter, vocab: Path, vocab_size: int) -> None:
    with open_model(vocab) as file:
        fields = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
        found = len(fields.get("tokenizer.ggml.tokens", ()))
        if found != vocab_size:
            raise ValueError(f"{vocab} has {found} tokens, the shape needs {vocab_size}; give another --vocab")
        for key, value in fields.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, list(value))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("format", choices=sorted([*FORMATS, *MIXTURES]), metavar="FORMAT", help="e.g. q4_0, q4_k_m")
    parser.add_argument("-o", "--output", type=Path, help="file to write (SHAPE-FORMAT.gguf)")
    parser.add_argument("--vocab", type=Path, metavar="FILE", help="GGUF file whose tokenizer is taken over")
    parser.add_argument("--layers", type=int, metavar="N", help="instead of the shape's own number")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    if args.layers:
        shape = replace(shape, num_layers=args.layers)
    path = args.output or Path(f"{args.shape}-{args.format}.gguf")
    started = time.perf_counter()
    try:
        write_model(path, shape, args.format, vocab=args.vocab, seed=args.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
