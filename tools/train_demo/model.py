"""The llama network of the demo model in torch, and its optimisers."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shape of the network; every row length is a multiple of the 32 weights of a Q8_0 group."""

    vocab_size: int = 1536
    hidden_size: int = 256
    intermediate_size: int = 576
    num_layers: int = 5
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64  # wide heads learn to copy sooner
    max_model_len: int = 1024
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


class Layer(nn.Module):
    """One transformer layer; q, k, v and gate, up are stored as one matrix each because fewer calls are faster."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, kv = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
        self.input_norm = nn.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)
        self.qkv_proj = nn.Linear(sizes.hidden_size, width + 2 * kv, bias=False)
        self.o_proj = nn.Linear(width, sizes.hidden_size, bias=False)
        self.post_norm = nn.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)
        self.gate_up_proj = nn.Linear(sizes.hidden_size, 2 * sizes.intermediate_size, bias=False)
        self.down_proj = nn.Linear(sizes.intermediate_size, sizes.hidden_size, bias=False)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        s = self.sizes
        heads = self.qkv_proj(self.input_norm(x)).view(batch, length, -1, s.head_dim).transpose(1, 2)
        q, k, v = heads.split([s.num_heads, s.num_kv_heads, s.num_kv_heads], dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = s.num_heads // s.num_kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))

    def feed_forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(self.post_norm(x)).chunk(2, dim=-1)
        return x + self.down_proj(F.silu(gate) * up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split order of Hugging Face weights."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Model(nn.Module):
    """Decoder with tied embeddings."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed_tokens = nn.Embedding(sizes.vocab_size, sizes.hidden_size)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.num_layers))
        self.norm = nn.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)
        inverse = sizes.rope_theta ** -(torch.arange(0, sizes.head_dim, 2).float() / sizes.head_dim)
        angles = torch.outer(torch.arange(sizes.max_model_len).float(), inverse).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.04 / (2 * sizes.num_layers) ** 0.5 if residual else 0.04)

    def forward(self, token_ids: Tensor, wanted: Tensor) -> Tensor:
        """Logits of the wanted positions of token_ids [batch, length]; wanted is a mask of the same shape."""
        cos, sin = self.cos[: token_ids.shape[1]], self.sin[: token_ids.shape[1]]
        x = self.embed_tokens(token_ids)
        for layer in self.layers[:-1]:
            x = layer.feed_forward(layer.attend(x, cos, sin))
        # Only the wanted rows go on from here: the others' last feed forward would be thrown away.
        x = self.layers[-1].attend(x, cos, sin)[wanted]
        return F.linear(self.norm(self.layers[-1].feed_forward(x)), self.embed_tokens.weight)
