"""Inverse frequencies of every scaling agree with known values, and with transformers."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.errors import MalformedFile
from runtime.models import RopeParameters, inverse_frequencies


def test_plain_frequencies_fall_geometrically() -> None:
    inv_freq, scale = inverse_frequencies(RopeParameters(10000.0, 8), 4096)
    assert inv_freq.dtype == np.float32
    assert inv_freq.tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001])
    assert scale == 1.0


def test_divisors_of_the_file_divide() -> None:
    inv_freq, _ = inverse_frequencies(RopeParameters(10000.0, 4), 4096, np.array([1.0, 8.0]))
    assert inv_freq.tolist() == pytest.approx([1.0, 0.00125])


@pytest.mark.parametrize("divisors", [[1.0, 0.0], [1.0, 2.0, 3.0]])
def test_impossible_divisors_are_malformed(divisors: list[float]) -> None:
    with pytest.raises(MalformedFile, match="rope factors"):
        inverse_frequencies(RopeParameters(10000.0, 4), 4096, np.array(divisors))


def test_longrope_takes_long_factors_only_for_a_longer_context() -> None:
    rope = RopeParameters(
        10000.0,
        4,
        "longrope",
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        short_factor=(1.0, 2.0),
        long_factor=(4.0, 5.0),
    )
    short, scale = inverse_frequencies(rope, 4096)
    long, _ = inverse_frequencies(rope, 4097)
    assert short.tolist() == pytest.approx([1.0, 0.005])
    assert long.tolist() == pytest.approx([0.25, 0.002])
    assert scale == pytest.approx(1.1902380714238083)  # of Phi-3-mini-128k


_SCALINGS: list[dict[str, object]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 8.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False},
    {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "attention_factor": 1.5},
    {
        "rope_type": "longrope",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "short_factor": [1.0 + i / 50 for i in range(64)],
        "long_factor": [1.0 + i for i in range(64)],
    },
]


@pytest.mark.oracle
@pytest.mark.parametrize("max_model_len", [2048, 131072])
@pytest.mark.parametrize("scaling", _SCALINGS, ids=lambda s: s["rope_type"])
def test_scalings_agree_with_transformers(scaling: dict[str, object], max_model_len: int) -> None:
    from headers import hf_config
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from runtime.models import describe_model

    fields = {
        "hidden_size": 512,
        "num_attention_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 131072 if scaling["rope_type"] != "dynamic" else 8192,
        "rope_parameters": {"rope_theta": 500000.0, **scaling},
    }
    model = describe_model("hf", hf_config("llama", "LlamaForCausalLM", **fields), {})
    config = LlamaConfig(**fields)
    if scaling["rope_type"] == "default":
        expected, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[str(scaling["rope_type"])](config, "cpu", seq_len=max_model_len)
    found, scale = inverse_frequencies(model.ropes["default"], max_model_len)
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-5)
    assert scale == pytest.approx(factor)
