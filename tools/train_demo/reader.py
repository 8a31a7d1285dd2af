"""Reads the demo GGUF and runs it in plain torch: a second implementation that shares nothing with the training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import torch
import torch.nn.functional as F  # noqa: N812
from tokenizer import pipeline
from tokenizers import AddedToken, Tokenizer, models
from torch import Tensor


class File:
    """The weights, the tokenizer and the chat template of one file, dequantised to float32."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self.weights = {
            tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
            for tensor in reader.tensors
        }
        self.tokenizer = self._tokenizer()
        self.eos = self.metadata["tokenizer.ggml.eos_token_id"]

    def _tokenizer(self) -> Tokenizer:
        tokens, kinds = self.metadata["tokenizer.ggml.tokens"], self.metadata["tokenizer.ggml.token_type"]
        merges = [tuple(merge.split(" ")) for merge in self.metadata["tokenizer.ggml.merges"]]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        tokenizer = pipeline(Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True)))
        special = [token for token, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL]
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
        return tokenizer

    @torch.no_grad()
    def logits(self, token_ids: Tensor) -> Tensor:
        """Logits [batch, length, vocab_size] of token_ids [batch, length]."""
        meta, weights = self.metadata, self.weights
        num_heads, num_kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
        eps, batch, length = meta["llama.attention.layer_norm_rms_epsilon"], *token_ids.shape
        x = weights["token_embd.weight"][token_ids]
        size = x.shape[-1] // num_heads
        exponent = torch.arange(0, size, 2, dtype=torch.float64) / size
        angle = torch.outer(torch.arange(length, dtype=torch.float64), meta["llama.rope.freq_base"] ** -exponent)
        turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)[:, None]
        hidden = torch.full((length, length), -math.inf).triu(1)

        def norm(value: Tensor, name: str) -> Tensor:
            return value / (value.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weights[name]

        def rope(value: Tensor) -> Tensor:
            pairs = torch.view_as_complex(value.reshape(batch, length, -1, size // 2, 2))
            return torch.view_as_real(pairs * turn).flatten(-2)

        for i in range(meta["llama.block_count"]):
            own = {name.split(".", 2)[2]: value for name, value in weights.items() if name.startswith(f"blk.{i}.")}
            h = norm(x, f"blk.{i}.attn_norm.weight")
            q = rope((h @ own["attn_q.weight"].T).view(batch, length, num_heads, size))
            k = rope((h @ own["attn_k.weight"].T).view(batch, length, num_kv_heads, size))
            v = (h @ own["attn_v.weight"].T).view(batch, length, num_kv_heads, size)
            k, v = (t.repeat_interleave(num_heads // num_kv_heads, 2) for t in (k, v))
            scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(size) + hidden
            mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).reshape(batch, length, -1)
            x = x + mixed @ own["attn_output.weight"].T
            h = norm(x, f"blk.{i}.ffn_norm.weight")
            x = x + (F.silu(h @ own["ffn_gate.weight"].T) * (h @ own["ffn_up.weight"].T)) @ own["ffn_down.weight"].T
        return norm(x, "output_norm.weight") @ weights["token_embd.weight"].T

    def generate(self, prompt: str, max_tokens: int = 256) -> tuple[str, float]:
        """The greedy answer, and the smallest lead in logits of a chosen token over the next best."""
        token_ids, lead = self.tokenizer.encode(prompt).ids, math.inf
        num_prompt_tokens = len(token_ids)
        while len(token_ids) < num_prompt_tokens + max_tokens:
            best = self.logits(torch.tensor([token_ids]))[0, -1].topk(2)
            lead = min(lead, float(best.values[0] - best.values[1]))
            if int(best.indices[0]) == self.eos:
                break
            token_ids.append(int(best.indices[0]))
        return self.tokenizer.decode(token_ids[num_prompt_tokens:], skip_special_tokens=False), lead

    def follows(self, pairs: list[tuple[str, str]]) -> list[bool]:
        """For each (prompt, answer with its end mark): whether greedy decoding of the prompt gives the answer."""
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        right = [False] * len(pairs)
        for at in range(0, len(order), 64):
            chosen = order[at : at + 64]
            prompts = [self.tokenizer.encode(pairs[i][0]).ids for i in chosen]
            answers = [self.tokenizer.encode(pairs[i][1]).ids for i in chosen]
            width = max(len(p) + len(a) for p, a in zip(prompts, answers))
            rows = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in zip(prompts, answers)])
            likeliest = self.logits(rows).argmax(-1)
            for i, row, p, a in zip(chosen, likeliest, prompts, answers):
                right[i] = row[len(p) - 1 : len(p) + len(a) - 1].tolist() == a
        return right
