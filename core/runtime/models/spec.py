"""What the runtime knows of a model: its sizes, the traits of its layers, and the tensors of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from runtime.dtypes import Format, TensorSpec

Kind = Literal["gguf", "hf"]
"""Which naming and metadata a model's files follow: GGUF keys, or a Hugging Face config.json."""

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class RopeParameters:
    """Parameters of one rotary embedding; `rope.inverse_frequencies` turns them into numbers.

    `rotary_dim` is how many leading elements of a head are rotated. `factors_tensor` (llama3 in GGUF) and
    `short_tensor`/`long_tensor` (longrope in GGUF) name tensors of the file that divide the frequencies.
    """

    theta: float
    rotary_dim: int
    kind: RopeKind = "default"
    factor: float | None = None
    max_position_embeddings: int = 0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    factors_tensor: str | None = None
    short_tensor: str | None = None
    long_tensor: str | None = None


@dataclass(frozen=True)
class ExpertSpec:
    """Mixture of experts of the sparse layers; `shared_intermediate_size` 0 means no shared expert."""

    count: int
    top_k: int
    intermediate_size: int
    score: Literal["softmax", "sigmoid", "softmax_selected"] = "softmax"
    normalize: bool = True
    bias: bool = False
    """Whether router and experts add biases."""
    shared_intermediate_size: int = 0


@dataclass(frozen=True)
class LayerSpec:
    """What distinguishes one layer: `window` 0 sees all tokens; `rope` None does not rotate; `sparse` has experts."""

    window: int = 0
    rope: str | None = "default"
    sparse: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """One model, complete: from this alone its step graph and its weights follow.

    `max_model_len` is the context it was trained for. `ropes` holds the rotary embeddings that `LayerSpec.rope`
    names. `norm_weight_offset` is added to every norm weight (Gemma stores weight - 1 in safetensors).
    """

    architecture: str
    kind: Kind
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int
    rms_norm_eps: float
    layers: tuple[LayerSpec, ...]
    ropes: Mapping[str, RopeParameters]
    attention_scale: float
    activation: str = "silu"
    activation_alpha: float = 1.702
    activation_limit: float = 7.0
    rope_interleaved: bool = False
    norm_weight_offset: float = 0.0
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    sinks: bool = False
    embed_scale: float = 1.0
    residual_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    attention_softcap: float = 0.0
    logits_softcap: float = 0.0
    experts: ExpertSpec | None = None
    tie_word_embeddings: bool = False
    tensors: Mapping[str, TensorSpec] = field(default_factory=dict, repr=False, compare=False)

    @property
    def rope_theta(self) -> float:
        """Base of the rotary embedding of the layers that see all tokens."""
        return self.ropes["default"].theta


def kv_bytes_per_token(spec: ModelSpec, fmt: Format) -> int:
    """Bytes of keys and values of one token over all layers, stored in `fmt`."""
    return spec.num_layers * fmt.nbytes((2, spec.num_kv_heads, spec.head_dim))
