"""What a GPU can do, and what transformers makes of it: ceilings and the peer of `gpu.py`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from models import Shape

COPY_BYTES = 2 << 30
MATRIX_SIZE = 8192
NUM_TOGETHER = 8
"""Copies and products of one timing, so that waiting for the device does not count."""
CEILING_REPEAT = 5


@dataclass(frozen=True)
class Ceilings:
    """Of a device: bytes read and written by a copy, and operations of a product of bf16 matrices, per second."""

    copy_bytes_per_s: float
    matmul_operations_per_s: float


@dataclass(frozen=True)
class PeerStep:
    """One measurement: tokens per second, spread, and bytes of the weights that a step of it reads."""

    kind: str
    batch: int
    num_tokens: int
    tokens_per_s: float
    spread: float
    weight_bytes: int
    is_compiled: bool


def seconds_of(
    work: Callable[[], object], device: str, repeat: int, prepare: Callable[[], object] = lambda: None
) -> list[float]:
    """Wall seconds of `repeat` runs after one that is not counted; `prepare` goes before each and is not counted."""
    import torch

    def synchronize() -> None:
        if device != "cpu":
            getattr(torch, device).synchronize()

    prepare()
    work()
    made = []
    for _ in range(repeat):
        prepare()
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        made.append(time.perf_counter() - started)
    return made


def measure_ceilings(device: str, *, is_tiny: bool) -> Ceilings:
    """A copy larger than any cache, and a square product of random matrices."""
    import torch

    size = 128 if is_tiny else MATRIX_SIZE
    source = torch.randn((1 << 20 if is_tiny else COPY_BYTES) // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        for _ in range(NUM_TOGETHER):
            target.copy_(source)

    copied = min(seconds_of(copy, device, CEILING_REPEAT)) / NUM_TOGETHER
    a, b = (torch.randn((size, size), device=device).to(torch.bfloat16) for _ in range(2))
    y = torch.empty_like(a)

    def multiply() -> None:
        for _ in range(NUM_TOGETHER):
            torch.mm(a, b, out=y)

    product = min(seconds_of(multiply, device, CEILING_REPEAT)) / NUM_TOGETHER
    return Ceilings(2 * source.numel() * 2 / copied, 2 * size**3 / product)


def hf_class(shape: Shape) -> str:
    """The class that reads such a checkpoint."""
    if shape.num_experts:
        return "Qwen3MoeForCausalLM"
    return "Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"


def hf_config(shape: Shape) -> Any:
    """The shape as transformers knows it."""
    import transformers

    common = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_model_len,
        "rms_norm_eps": shape.rms_norm_eps,
        "tie_word_embeddings": shape.tied,
    }
    if shape.num_experts:
        return transformers.Qwen3MoeConfig(
            **common,
            intermediate_size=shape.intermediate_size,
            moe_intermediate_size=shape.intermediate_size,
            num_experts=shape.num_experts,
            num_experts_per_tok=shape.num_experts_used,
        )
    kind = transformers.Qwen3Config if shape.qk_norm else transformers.LlamaConfig
    return kind(**common, intermediate_size=shape.intermediate_size)


def measure_transformers(
    device: str,
    shape: Shape,
    steps: tuple[tuple[str, int], ...],
    *,
    depth: int,
    decode: int,
    repeat: int,
    compiles: bool,
) -> Iterator[PeerStep]:
    """`steps` are ("decode", batch) and ("prefill", tokens): with a static cache, in bf16, by random weights.

    Decoding is compiled with CUDA graphs where `compiles` (mode reduce-overhead, every shape by itself). Prompts are
    not, as transformers itself does it: they gain little, and each length would be compiled for a minute.
    """
    import torch
    from transformers import AutoModelForCausalLM, StaticCache

    config = hf_config(shape)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    num_read = 2 * sum(p.numel() for p in model.parameters()) - 2 * model.get_input_embeddings().weight.numel()
    compiled = torch.compile(model.forward, mode="reduce-overhead", dynamic=False) if compiles else model.forward

    def seconds(kind: str, size: int) -> list[float]:
        batch, length, count = (size, 1, decode) if kind == "decode" else (1, size, 1)
        start = depth if kind == "decode" else 0
        cache = StaticCache(config=config, max_cache_len=start + length * count + 1)
        ids = torch.randint(0, shape.vocab_size, (batch, max(length, start)), device=device)
        forward = compiled if kind == "decode" else model.forward

        def fill() -> None:
            cache.reset()
            if start:
                model(ids[:, :start], past_key_values=cache, use_cache=True, logits_to_keep=1)

        def run() -> None:
            for _ in range(count):
                forward(ids[:, :length], past_key_values=cache, use_cache=True, logits_to_keep=1)

        fill()
        run()  # captured graphs begin with the second run
        return seconds_of(run, device, repeat, fill)

    with torch.no_grad():
        for kind, size in steps:
            num_tokens = size if kind == "prefill" else size * decode
            rates = [num_tokens / s for s in seconds(kind, size)]
            middle = statistics.median(rates)
            spread = (max(rates) - min(rates)) / middle
            batch, each = (1, size) if kind == "prefill" else (size, decode)
            yield PeerStep(kind, batch, each, middle, spread, num_read, compiles and kind == "decode")
