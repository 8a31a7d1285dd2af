"""Names of weights: ours, those of GGUF, those of Hugging Face, and how fused tensors contain ours.

For every weight there is a list of alternatives, each a list of `Wanted` parts that laid end to end make the weight.
The first alternative whose tensors are in the file is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runtime.models.recipes import Transform
from runtime.models.spec import ModelSpec
from runtime.models.traits import ARCHITECTURES

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Wanted:
    """A tensor that the file should have, of exactly `shape`; `num_rows` of its rows from `first_row` are used.

    Rows run over all dimensions but the last (for a vector, over its elements); None means all of them.
    """

    tensor: str
    shape: Shape
    first_row: int = 0
    num_rows: int | None = None


@dataclass(frozen=True)
class Alternative:
    """One way to make a weight."""

    parts: tuple[Wanted, ...]
    transform: Transform = "concat"
    start: int = 0
    step: int = 1


_GGUF_TOP = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_GGUF = {
    "attn_norm": "attn_norm",
    "attn_post_norm": "post_attention_norm",
    "ffn_norm": "ffn_norm",
    "ffn_post_norm": "post_ffw_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "router": "ffn_gate_inp",
    "experts.gate_proj": "ffn_gate_exps",
    "experts.up_proj": "ffn_up_exps",
    "experts.down_proj": "ffn_down_exps",
    "shared_expert.router": "ffn_gate_inp_shexp",
    "shared_expert.gate_proj": "ffn_gate_shexp",
    "shared_expert.up_proj": "ffn_up_shexp",
    "shared_expert.down_proj": "ffn_down_shexp",
}
_HF = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
    "shared_expert.router": "mlp.shared_expert_gate",
    "shared_expert.gate_proj": "mlp.shared_expert.gate_proj",
    "shared_expert.up_proj": "mlp.shared_expert.up_proj",
    "shared_expert.down_proj": "mlp.shared_expert.down_proj",
}
_HF_PREFIXES = ("model.", "language_model.model.", "model.language_model.", "")
_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def alternatives(spec: ModelSpec, name: str, shape: Shape) -> Iterator[Alternative]:
    """Ways to make the weight `name` of `shape` from the tensors of a file of this kind, likeliest first."""
    layer, part, suffix = _split(name)
    if part == "shared_expert.down_proj":
        shape = shape[1:]  # a mixture of one here, a plain matrix in files
    yield from (_gguf if spec.kind == "gguf" else _hf)(spec, layer, part, suffix, shape)


def hf_prefix(spec: ModelSpec) -> str:
    """What stands before "embed_tokens" and "layers": it depends on the class that saved the model."""
    for prefix in _HF_PREFIXES:
        if f"{prefix}embed_tokens.weight" in spec.tensors:
            return prefix
    return _HF_PREFIXES[0]


def is_ignorable(spec: ModelSpec, tensor: str) -> bool:
    """Whether a tensor that nobody uses is harmless: derived data, a tied copy, or a part that reads images."""
    if tensor.endswith(
        ("rotary_emb.inv_freq", "attn_rot_embd.weight", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
    ):
        return True
    if spec.kind == "hf" and tensor.endswith((".input_scale", ".k_scale", ".v_scale")):
        return True  # for activations and caches in 8 bits; here they have more
    if spec.tie_word_embeddings and tensor.endswith("lm_head.weight"):
        return True
    return spec.kind == "hf" and tensor.removeprefix("model.").startswith(("vision_tower.", "multi_modal_projector."))


def _split(name: str) -> tuple[int | None, str, str]:
    """ "layers.3.experts.up_proj.weight" -> (3, "experts.up_proj", "weight")."""
    stem, suffix = name.rsplit(".", 1)
    if not stem.startswith("layers."):
        return None, stem, suffix
    _, layer, part = stem.split(".", 2)
    return int(layer), part, suffix


def _whole(tensor: str, shape: Shape) -> Alternative:
    return Alternative((Wanted(tensor, shape),))


def _gguf(spec: ModelSpec, layer: int | None, part: str, suffix: str, shape: Shape) -> Iterator[Alternative]:
    if layer is None:
        yield _whole(f"{_GGUF_TOP[part]}.{suffix}", shape)
        return
    block = f"blk.{layer}."
    if part == "sinks":
        yield Alternative((Wanted(f"{block}attn_sinks.weight", shape),), "f32")
        return
    if part in ("gate_proj", "up_proj") and ARCHITECTURES[spec.architecture].fused:
        yield _gate_up_rows(f"{block}ffn_up.{suffix}", part, shape)
        return
    yield _whole(f"{block}{_GGUF[part]}.{suffix}", shape)
    if part == "ffn_norm" and not spec.post_norms:
        yield _whole(f"{block}post_attention_norm.{suffix}", shape)  # gpt-oss
    if part in ("q_proj", "k_proj", "v_proj"):
        yield _qkv_rows(spec, f"{block}attn_qkv.{suffix}", part, shape)
    if part.startswith("experts."):
        kind = part.removeprefix("experts.")
        each = [f"{block}{_GGUF[kind]}.{expert}.{suffix}" for expert in range(shape[0])]
        yield Alternative(tuple(Wanted(tensor, shape[1:]) for tensor in each))
        if kind != "down_proj":
            yield _fused_experts(f"{block}ffn_gate_up_exps.{suffix}", kind, shape)


def _hf(spec: ModelSpec, layer: int | None, part: str, suffix: str, shape: Shape) -> Iterator[Alternative]:
    prefix = hf_prefix(spec)
    if layer is None:
        yield _whole(f"{prefix}{part}.{suffix}", shape)
        if part == "lm_head":
            yield _whole("lm_head.weight", shape)
            yield _whole("language_model.lm_head.weight", shape)
        return
    block = f"{prefix}layers.{layer}."
    if part == "sinks":
        yield Alternative((Wanted(f"{block}self_attn.sinks", shape),), "f32")
    elif part in ("ffn_norm", "attn_post_norm", "ffn_post_norm"):
        yield _whole(f"{block}{_hf_norm(spec, part)}.{suffix}", shape)
    elif part == "router":
        columns = ARCHITECTURES[spec.architecture].experts_columns
        for name in ("mlp.router",) if columns else ("mlp.gate", "block_sparse_moe.gate"):
            yield _whole(f"{block}{name}.{suffix}", shape)
    elif part.startswith("experts."):
        yield from _hf_experts(spec, block, part.removeprefix("experts."), suffix, shape)
    else:
        yield _whole(f"{block}{_HF[part]}.{suffix}", shape)
    if part in ("q_proj", "k_proj", "v_proj"):
        yield _qkv_rows(spec, f"{block}self_attn.qkv_proj.{suffix}", part, shape)
    if part in ("gate_proj", "up_proj"):
        yield _gate_up_rows(f"{block}mlp.gate_up_proj.{suffix}", part, shape)


def _hf_norm(spec: ModelSpec, part: str) -> str:
    if part == "ffn_norm":
        return "pre_feedforward_layernorm" if spec.post_norms else "post_attention_layernorm"
    return {"attn_post_norm": "post_attention_layernorm", "ffn_post_norm": "post_feedforward_layernorm"}[part]


def _hf_experts(spec: ModelSpec, block: str, kind: str, suffix: str, shape: Shape) -> Iterator[Alternative]:
    fused = "down_proj" if kind == "down_proj" else "gate_up_proj"
    if ARCHITECTURES[spec.architecture].experts_columns:
        yield from _column_experts(f"{block}mlp.experts.{fused}", kind, suffix, shape)
        return
    for stem, last in ((f"{block}mlp.experts", kind), (f"{block}block_sparse_moe.experts", _MIXTRAL[kind])):
        each = [f"{stem}.{expert}.{last}.{suffix}" for expert in range(shape[0])]
        yield Alternative(tuple(Wanted(tensor, shape[1:]) for tensor in each))
    if kind == "down_proj":
        yield _whole(f"{block}mlp.experts.down_proj", shape)
    else:
        yield _fused_experts(f"{block}mlp.experts.gate_up_proj", kind, shape)


def _column_experts(stem: str, kind: str, suffix: str, shape: Shape) -> Iterator[Alternative]:
    """gpt-oss: gate and up interleaved; matrices either [E, in, out] or mxfp4 blocks with their scales."""
    step = 1 if kind == "down_proj" else 2
    start = 1 if kind == "up_proj" else 0
    if suffix == "bias":
        yield Alternative((Wanted(f"{stem}_bias", (shape[0], step * shape[1])),), "stride", start, step)
        return
    experts, rows, columns = shape[0], step * shape[1], shape[2]
    groups = columns // 32
    packed = Wanted(f"{stem}_blocks", (experts, rows, groups, 16)), Wanted(f"{stem}_scales", (experts, rows, groups))
    yield Alternative((Wanted(stem, (experts, columns, rows)),), "columns", start, step)
    yield Alternative(packed, "mxfp4", start, step)


def _qkv_rows(spec: ModelSpec, tensor: str, part: str, shape: Shape) -> Alternative:
    q_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    first = {"q_proj": 0, "k_proj": q_rows, "v_proj": q_rows + kv_rows}[part]
    fused: Sequence[int] = (q_rows + 2 * kv_rows, *shape[1:])
    return Alternative((Wanted(tensor, tuple(fused), first, shape[0]),))


def _gate_up_rows(tensor: str, part: str, shape: Shape) -> Alternative:
    first = 0 if part == "gate_proj" else shape[0]
    return Alternative((Wanted(tensor, (2 * shape[0], *shape[1:]), first, shape[0]),))


def _fused_experts(tensor: str, kind: str, shape: Shape) -> Alternative:
    experts, rows = shape[0], shape[1]
    first = 0 if kind == "gate_proj" else rows
    whole = (experts, 2 * rows, *shape[2:])
    return Alternative(tuple(Wanted(tensor, whole, e * 2 * rows + first, rows) for e in range(experts)))
