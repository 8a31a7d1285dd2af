"""Log-probabilities of prompts and of answers are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_model

from runtime import LLM, SamplingParams

pytestmark = pytest.mark.oracle

TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {chr(33 + i): i for i in range(90)}, "merges": []},
}


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_scores_are_the_log_softmax_of_transformers(name: str, tmp_path: Path) -> None:
    import torch

    model = save_model(name, tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    rng = np.random.default_rng(3)
    prompts = [[int(t) for t in rng.integers(3, 131, n)] for n in (2, 23, 60, 41)]
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=4, prompt_logprobs=4)
    with LLM(tmp_path, max_num_seqs=3, max_num_batched_tokens=40, kv_format="f32") as llm:
        answers = llm.generate(prompts, [params, params, params.with_(max_tokens=0), params])
    for prompt, answer in zip(prompts, answers, strict=True):
        token_ids = [*prompt, *answer.token_ids]
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([token_ids])).logits[0], -1).numpy()
        positions = [*(answer.prompt_logprobs or ()), *(answer.logprobs or ())]
        assert len(positions) == len(token_ids)
        assert positions[0] is None
        for i, position in enumerate(positions[1:]):
            assert position is not None
            best = np.sort(expected[i])[::-1][:4]
            assert position.chosen.token_id == token_ids[i + 1]
            assert position.chosen.logprob == pytest.approx(expected[i, token_ids[i + 1]], abs=1e-4)
            assert [t.logprob for t in position.top] == pytest.approx(best.tolist(), abs=1e-4)
            assert [expected[i, t.token_id] for t in position.top] == pytest.approx(best.tolist(), abs=1e-4)
