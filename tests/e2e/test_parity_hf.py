"""Every architecture gives the logits and greedy tokens of transformers, from a directory and from GGUF."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from steps import ExecutorRunner, Runner, generate_greedily, logits_in_chunks, open_runner, ragged_inputs
from tiny_models import CONFIGS, make_model, save_model

from runtime.formats import open_model

pytestmark = pytest.mark.oracle

MAX_DIFFERENCE = 2e-4  # the goal is 1e-3; gelu and its tanh form differ by less than that

PROMPT = [int(i) for i in np.random.default_rng(7).integers(3, 131, 21)]
"""Longer than every sliding window of the tiny models."""
MAX_MODEL_LEN = 64

HF_ONLY = {
    "mistral": "llama.cpp's llama architecture has no sliding window",
    "mixtral-window": "llama.cpp's llama architecture has no sliding window",
    "qwen2-window": "llama.cpp's qwen2 has no sliding window",
    "smollm3-window": "llama.cpp's smollm3 has no sliding window and a fixed pattern of layers without rope",
    "qwen2_moe-some-dense": "llama.cpp's qwen2moe has no dense layers and does not normalise",
    "gpt_oss-clamped": "GGUF does not hold the limits of the activation",
}


@dataclass
class Tiny:
    name: str
    folder: Path
    model: Any

    def logits(self, token_ids: list[int]) -> np.ndarray:
        import torch

        with torch.no_grad():
            return self.model(torch.tensor([token_ids])).logits[0].numpy()


@pytest.fixture(scope="module", params=CONFIGS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp(request.param)
    return Tiny(request.param, folder, save_model(request.param, folder))


def assert_parity(tiny: Tiny, runner: Runner) -> None:
    expected = tiny.logits(PROMPT)
    assert expected.std() > 0.3
    for chunk in (len(PROMPT), 7, 1):
        found = logits_in_chunks(runner, PROMPT, chunk, seed=chunk)
        assert np.abs(found - expected).max() <= MAX_DIFFERENCE, f"chunks of {chunk}"
    output, found = generate_greedily(runner, PROMPT, 32, seed=5)
    # transformers sees our tokens: if each is its own choice too, its greedy output is the same
    expected = tiny.logits(PROMPT + output)[len(PROMPT) - 1 : -1]
    assert output == expected.argmax(-1).tolist()
    assert len(set(output)) > 1
    assert np.abs(found - expected).max() <= MAX_DIFFERENCE


def test_directory_gives_the_logits_and_tokens_of_transformers(tiny: Tiny) -> None:
    if tiny.name == "qwen2":
        assert len(list(tiny.folder.glob("*.safetensors"))) > 1
    with open_model(tiny.folder) as model:
        assert_parity(tiny, open_runner(model, max_model_len=MAX_MODEL_LEN))


def test_executor_gives_the_logits_and_tokens_of_transformers(tiny: Tiny) -> None:
    with open_model(tiny.folder) as model:
        assert_parity(tiny, open_runner(model, max_model_len=MAX_MODEL_LEN, make=ExecutorRunner))


def test_executor_with_composites_taken_apart_gives_the_logits_of_transformers(tiny: Tiny) -> None:
    make = partial(ExecutorRunner, composites=False)
    with open_model(tiny.folder) as model:
        runner = open_runner(model, max_model_len=MAX_MODEL_LEN, make=make)
        assert not any(node.op.is_composite for node in runner.plan.graph)
        found = logits_in_chunks(runner, PROMPT, 7)
    assert np.abs(found - tiny.logits(PROMPT)).max() <= MAX_DIFFERENCE


def test_gguf_gives_the_logits_and_tokens_of_transformers(tiny: Tiny, tmp_path: Path) -> None:
    from tiny_gguf import write_gguf

    if tiny.name in HF_ONLY:
        pytest.skip(HF_ONLY[tiny.name])
    write_gguf(tiny.folder, tmp_path / "tiny.gguf")
    with open_model(tmp_path / "tiny.gguf") as model:
        assert_parity(tiny, open_runner(model, max_model_len=MAX_MODEL_LEN))


def test_sequences_of_one_step_do_not_see_each_other(tmp_path: Path) -> None:
    tiny = Tiny("gpt_oss", tmp_path, save_model("gpt_oss", tmp_path))
    with open_model(tmp_path) as model:
        runner = open_runner(model, max_model_len=MAX_MODEL_LEN)
    first, second, third = PROMPT[:13], PROMPT[5:21], PROMPT[3:5]
    blocks = [list(range(i, 24, 3)) for i in range(3)]
    runner.run(ragged_inputs([(first[:6], 0, blocks[0]), (second[:15], 0, blocks[1])], runner.block_size))
    parts = [(first[6:], 6, blocks[0]), (second[15:], 15, blocks[1]), (third, 0, blocks[2])]
    found = runner.run(ragged_inputs(parts, runner.block_size))
    expected = np.concatenate([tiny.logits(first)[6:], tiny.logits(second)[15:], tiny.logits(third)])
    assert np.abs(found - expected).max() <= MAX_DIFFERENCE


def test_mixtral_gguf_with_a_tensor_per_expert_is_read(tmp_path: Path) -> None:
    from tiny_gguf import unstack_experts, write_gguf

    tiny = Tiny("mixtral", tmp_path, save_model("mixtral", tmp_path))
    write_gguf(tmp_path, tmp_path / "stacked.gguf")
    unstack_experts(tmp_path / "stacked.gguf", tmp_path / "single.gguf")
    with open_model(tmp_path / "single.gguf") as model:
        assert "blk.0.ffn_gate.4.weight" in model.tensors
        found = logits_in_chunks(open_runner(model, max_model_len=MAX_MODEL_LEN), PROMPT, len(PROMPT))
    assert np.abs(found - tiny.logits(PROMPT)).max() <= MAX_DIFFERENCE


def test_gpt_oss_with_mxfp4_experts_gives_the_logits_of_its_dequantized_weights(tmp_path: Path) -> None:
    import json

    import torch
    from safetensors.torch import save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    model = make_model("gpt_oss")
    generator = torch.Generator().manual_seed(3)
    tensors = {n: t.clone() for n, t in model.state_dict().items() if ".experts." not in n or n.endswith("_bias")}
    for layer, block in enumerate(model.model.layers):
        experts = block.mlp.experts
        for part in ("gate_up_proj", "down_proj"):
            weight = getattr(experts, part)
            count, columns, rows = weight.shape
            blocks = torch.randint(0, 256, (count, rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(122, 125, blocks.shape[:3], generator=generator, dtype=torch.uint8)
            weight.data.copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
            stem = f"model.layers.{layer}.mlp.experts.{part}"
            tensors |= {f"{stem}_blocks": blocks, f"{stem}_scales": scales}
    save_file(tensors, tmp_path / "model.safetensors")
    config = model.config.to_dict() | {"quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    with open_model(tmp_path) as opened:
        runner = open_runner(opened, max_model_len=MAX_MODEL_LEN)
    assert runner.graph.weights["layers.0.experts.up_proj.weight"].spec.format.name == "mxfp4"
    assert_parity(Tiny("gpt_oss", tmp_path, model), runner)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_our_gguf_files_mean_the_same_to_transformers(name: str, tmp_path: Path) -> None:
    import torch
    from tiny_gguf import write_gguf
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny = Tiny(name, tmp_path, save_model(name, tmp_path))
    (tmp_path / "converted").mkdir()
    write_gguf(tmp_path, tmp_path / "converted" / "tiny.gguf")
    config = AutoConfig.from_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "converted", gguf_file="tiny.gguf", config=config, dtype=torch.float32
    ).eval()
    found = Tiny(name, tmp_path, loaded).logits(PROMPT)
    assert np.abs(found - tiny.logits(PROMPT)).max() <= MAX_DIFFERENCE
