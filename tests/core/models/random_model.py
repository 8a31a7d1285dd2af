"""Models in memory whose weights are seeded random numbers, under the names of Hugging Face files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from headers import hf_config, spec

from runtime.dtypes import TensorSpec
from runtime.models import describe_model, weight_shapes
from runtime.models.names import alternatives

_SMALL: dict[str, Any] = {"num_hidden_layers": 3, "sliding_window": 5, "tie_word_embeddings": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": hf_config(
        "llama",
        "LlamaForCausalLM",
        **_SMALL,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "gemma2": hf_config(
        "gemma2",
        "Gemma2ForCausalLM",
        **_SMALL,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "qwen2_moe": hf_config(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        **{**_SMALL, "sliding_window": None},
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
    ),
    "gpt_oss": hf_config("gpt_oss", "GptOssForCausalLM", **_SMALL, num_local_experts=5, num_experts_per_tok=2),
}


@dataclass
class RandomModel:
    """What an open model file offers to `runtime.models`."""

    metadata: dict[str, Any]
    arrays: dict[str, np.ndarray]
    kind: str = "hf"

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        return {name: spec("f32", *array.shape) for name, array in self.arrays.items()}

    def data(self, name: str) -> memoryview:
        return memoryview(self.arrays[name]).cast("B")


def random_model(name: str) -> RandomModel:
    """The model called `name`; the same numbers on every machine."""
    config = CONFIGS[name]
    rng = np.random.default_rng(11)
    model = describe_model("hf", config, {})
    arrays = {}
    for weight, shape in weight_shapes(model).items():
        for part in next(iter(alternatives(model, weight, shape))).parts:
            if part.tensor in arrays:
                continue
            noise = rng.standard_normal(part.shape)
            if len(part.shape) == 1:
                centre = 1.0 if "norm" in part.tensor and not name.startswith("gemma") else 0.0
                noise = noise * 0.3 + centre
            else:
                noise *= 0.2 if "embed_tokens" in part.tensor else 1.5 * shape[-1] ** -0.5
            arrays[part.tensor] = noise.astype("<f4")
    return RandomModel(config, arrays)
