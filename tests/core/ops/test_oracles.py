"""References against torch and transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.ops import CATALOGUE, EXACT

pytestmark = pytest.mark.oracle

HQ, H, D, BLOCK = 6, 2, 8, 4
ATTRS = {"num_heads": HQ, "num_kv_heads": H, "head_dim": D, "scale": D**-0.5}


def run(name: str, attrs: dict[str, Any] | None = None, **inputs: np.ndarray) -> np.ndarray:
    return CATALOGUE[f"{name}@1"].run_reference(EXACT, inputs, attrs or {})[0]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def paged(k: np.ndarray, v: np.ndarray, num_queries: int) -> dict[str, np.ndarray]:
    """One sequence of k, v [L, H * D] in a cache of shuffled blocks."""
    length = len(k)
    num_blocks = -(-length // BLOCK)
    table = np.random.default_rng(length).permutation(num_blocks + 2)[:num_blocks]
    kv = np.full((2, num_blocks + 2, BLOCK, H, D), np.nan)
    slots = table[np.arange(length) // BLOCK] * BLOCK + np.arange(length) % BLOCK
    run("kv_write", kv=kv, k=k, v=v, slot_mapping=slots)
    return {
        "kv": kv,
        "block_table": table[None],
        "query_start_loc": np.array([0, num_queries]),
        "seq_lens": np.array([length]),
    }


def heads(x: np.ndarray, num_heads: int) -> Any:
    """[L, num_heads * D] -> torch [1, num_heads, L, D]."""
    import torch

    return torch.from_numpy(x.reshape(len(x), num_heads, D).transpose(1, 0, 2)[None].copy())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("num_queries", [1, 7, 19])
def test_attention_equals_scaled_dot_product_attention(causal: bool, window: int, num_queries: int):
    import torch
    import torch.nn.functional as F  # noqa: N812

    q, k, v = normal(1, num_queries, HQ * D), normal(2, 19, H * D), normal(3, 19, H * D)
    distance = torch.arange(19 - num_queries, 19)[:, None] - torch.arange(19)
    mask = torch.ones_like(distance, dtype=torch.bool)
    if causal:
        mask &= distance >= 0
    if window:
        mask &= distance < window
    expected = F.scaled_dot_product_attention(heads(q, HQ), heads(k, H), heads(v, H), attn_mask=mask, enable_gqa=True)
    y = run("attention", {**ATTRS, "causal": causal, "window": window}, q=q, **paged(k, v, num_queries))
    np.testing.assert_allclose(heads(y, HQ), expected, atol=1e-12)


class _Module:
    """What the eager attention functions of transformers ask of their module."""

    num_key_value_groups = HQ // H
    head_dim = D
    training = False


def test_attention_with_sinks_equals_that_of_gpt_oss():
    import torch
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    q, k, v, sinks = normal(4, 5, HQ * D), normal(5, 12, H * D), normal(6, 12, H * D), normal(7, HQ)
    module = _Module()
    module.sinks = torch.from_numpy(sinks)
    hidden = torch.arange(7, 12)[:, None] < torch.arange(12)
    mask = torch.zeros(1, 1, 5, 12, dtype=torch.float64).masked_fill(hidden, float("-inf"))
    expected, _ = eager_attention_forward(module, heads(q, HQ), heads(k, H), heads(v, H), mask, scaling=D**-0.5)
    y = run("attention", ATTRS, q=q, **paged(k, v, 5), sinks=sinks)
    np.testing.assert_allclose(y, expected.reshape(5, -1), atol=1e-12)


def test_attention_with_softcap_equals_that_of_gemma2():
    import torch
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    q, k, v = 3 * normal(8, 5, HQ * D), normal(9, 12, H * D), normal(10, 12, H * D)
    hidden = torch.arange(7, 12)[:, None] < torch.arange(12)
    mask = torch.zeros(1, 1, 5, 12, dtype=torch.float64).masked_fill(hidden, float("-inf"))
    expected, _ = eager_attention_forward(
        _Module(), heads(q, HQ), heads(k, H), heads(v, H), mask, scaling=0.4, softcap=2.0
    )
    y = run("attention", {**ATTRS, "scale": 0.4, "softcap": 2.0}, q=q, **paged(k, v, 5))
    # gemma 2 computes its softmax in float32
    np.testing.assert_allclose(y, expected.reshape(5, -1), atol=1e-6)


def test_attention_with_slopes_equals_softmax_with_the_biases_of_bloom():
    import torch
    import torch.nn.functional as F  # noqa: N812
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    q, k, v = normal(11, 9, 4 * D), normal(12, 9, 2 * D), normal(13, 9, 2 * D)
    alibi = build_alibi_tensor(torch.ones(1, 9), 4, torch.float64)
    slopes = alibi[:, 0, 1].numpy()
    hidden = torch.arange(9)[:, None] < torch.arange(9)
    mask = alibi[None].expand(1, 4, 9, 9).masked_fill(hidden, float("-inf"))
    expected = F.scaled_dot_product_attention(heads(q, 4), heads(k, 2), heads(v, 2), attn_mask=mask, enable_gqa=True)
    y = run("attention", {**ATTRS, "num_heads": 4}, q=q, **paged(k, v, 9), alibi_slopes=slopes)
    np.testing.assert_allclose(heads(y, 4), expected, atol=1e-6)


def test_norms_equal_those_of_torch():
    import torch
    import torch.nn.functional as F  # noqa: N812

    x, weight, bias = normal(14, 5, 24), normal(15, 24), normal(16, 24)
    tx, tw, tb = (torch.from_numpy(a) for a in (x, weight, bias))
    y = run("rms_norm", {"eps": 1e-5, "weight_offset": 1.0}, x=x, weight=weight)
    np.testing.assert_allclose(y, F.rms_norm(tx, (24,), tw + 1, 1e-5), atol=1e-13)
    y = run("rms_norm", {"eps": 1e-6}, x=x, weight=weight[:8])
    np.testing.assert_allclose(y, F.rms_norm(tx.reshape(5, 3, 8), (8,), tw[:8], 1e-6).reshape(5, 24), atol=1e-13)
    y = run("layer_norm", {"eps": 1e-5}, x=x, weight=weight, bias=bias)
    np.testing.assert_allclose(y, F.layer_norm(tx, (24,), tw, tb, 1e-5), atol=1e-13)


def test_rope_equals_that_of_llama():
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = normal(17, 6, HQ * D), normal(18, 6, H * D)
    positions, inv_freq = np.array([0, 1, 5, 6, 900, 7]), 10000.0 ** (-np.arange(D // 2) / (D // 2))
    angle = torch.from_numpy(np.tile(positions[:, None] * inv_freq, 2))[None]
    expected = apply_rotary_pos_emb(heads(q, HQ), heads(k, H), angle.cos(), angle.sin())
    for x, num_heads, want in ((q, HQ, expected[0]), (k, H, expected[1])):
        y = run("rope", {"head_dim": D}, x=x, positions=positions, inv_freq=inv_freq)
        np.testing.assert_allclose(heads(y, num_heads), want, atol=1e-12)


def test_interleaved_rope_equals_that_of_cohere():
    import torch
    from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb

    q, k = normal(19, 4, HQ * D), normal(20, 4, H * D)
    positions, inv_freq = np.array([0, 3, 50, 51]), 10000.0 ** (-np.arange(D // 2) / (D // 2))
    angle = torch.from_numpy(np.repeat(positions[:, None] * inv_freq, 2, axis=1))[None]
    expected, _ = apply_rotary_pos_emb(heads(q, HQ), heads(k, H), angle.cos(), angle.sin())
    y = run("rope", {"head_dim": D, "interleaved": True}, x=q, positions=positions, inv_freq=inv_freq)
    np.testing.assert_allclose(heads(y, HQ), expected, atol=1e-5)  # computed there in float32


def test_nonlinearities_equal_those_of_transformers():
    import torch
    from transformers.activations import ACT2FN

    x = np.linspace(-12, 12, 482).reshape(2, 241)
    names = {"gelu_tanh": "gelu_pytorch_tanh"}
    for kind in ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "quick_gelu"):
        expected = ACT2FN[names.get(kind, kind)](torch.from_numpy(x))
        np.testing.assert_allclose(run("activation", {"kind": kind}, x=x), expected, atol=1e-13, err_msg=kind)


def test_the_gate_of_gpt_oss_equals_that_of_transformers():
    import torch
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    gate, up = 6 * normal(21, 4, 16), 6 * normal(22, 4, 16)
    interleaved = torch.from_numpy(np.stack([gate, up], -1).reshape(4, 32))
    module = _Module()
    module.alpha, module.limit = 1.702, 7.0
    expected = GptOssExperts._apply_gate(module, interleaved)
    np.testing.assert_allclose(run("glu", {"kind": "swiglu_oai"}, gate=gate, up=up), expected, atol=1e-13)


def test_topk_softmax_and_argmax_equal_those_of_torch():
    import torch

    x = np.random.default_rng(23).permutation(8000).reshape(2, 4000) / 100.0
    tx = torch.from_numpy(x)
    values, indices = CATALOGUE["topk@1"].run_reference(EXACT, {"x": x}, {"k": 50})
    expected = torch.topk(tx, 50)
    assert values.tolist() == expected.values.tolist()
    assert indices.tolist() == expected.indices.tolist()
    assert run("argmax", x=x).tolist() == tx.argmax(1).tolist()
    np.testing.assert_allclose(run("softmax", {"scale": 0.5}, x=x), torch.softmax(tx * 0.5, 1), atol=1e-14)
    np.testing.assert_allclose(run("softmax", {"log": True}, x=x), torch.log_softmax(tx, 1), atol=1e-12)


def test_convert_rounds_as_torch_does():
    import torch

    x = np.concatenate(
        [normal(24, 2, 5000) * 10.0 ** np.arange(-50, 50, 0.02), [[0.0, -0.0, np.inf, np.nan, 65520.0]] * 2], 1
    )
    single = torch.from_numpy(x).float()
    for fmt, dtype in (("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)):
        expected = single.to(dtype).double().numpy()
        y = run("convert", {"format": fmt}, x=single.double().numpy())
        assert np.array_equal(y, expected, equal_nan=True), fmt
