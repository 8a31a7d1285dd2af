"""What `LLM` says to arguments and prompts that it cannot take, before any model is opened."""

from __future__ import annotations

import io
from typing import Any

import pytest

from runtime import LLM, BeamSearchParams, SamplingParams
from runtime.engine import batch
from runtime.engine.prompts import encode_prompt, is_one_prompt
from runtime.errors import InvalidArgument
from runtime.tokenizer import ByteTokenizer


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ({"tensor_parallel_size": 2}, r"LLM has no argument tensor_parallel_size; leave it out: .*place="),
        ({"gpu_memory_utilization": 0.9}, "gpu_memory_utilization; use num_kv_blocks="),
        ({"enforce_eager": True}, "enforce_eager; leave it out: .*device_options"),
        ({"trust_remote_code": True}, "never run"),
        ({"dtype": "float16"}, "kv_format"),
        ({"swap_space": 4}, "swap_bytes"),
        ({"runner": "pooling"}, "generates and embeds"),
        ({"max_num_seq": 4}, r"LLM has no argument max_num_seq; did you mean max_num_seqs\?"),
        ({"zzz": 4}, "LLM takes model, backend, threads"),
    ],
)
def test_an_argument_that_means_nothing_here_is_refused_with_the_remedy(argument: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        LLM("no-such-file.gguf", **argument)


def test_prompts_may_be_mappings_as_in_vllm() -> None:
    tokenizer = ByteTokenizer()
    text, ids = encode_prompt(tokenizer, "hi"), encode_prompt(tokenizer, [5, 6])
    assert encode_prompt(tokenizer, {"prompt": "hi"}) == text
    assert encode_prompt(tokenizer, {"prompt_token_ids": [5, 6]}) == ids == ([5, 6], None)
    assert encode_prompt(tokenizer, {"prompt": "hi", "prompt_token_ids": [5, 6]}) == ([5, 6], "hi")
    assert is_one_prompt({"prompt": "hi"})
    assert not is_one_prompt([{"prompt": "hi"}])
    for wrong in ({}, {"prompt": None}, {"prompt": "hi", "multi_modal_data": {}}):
        with pytest.raises(InvalidArgument, match="a mapping with prompt or prompt_token_ids"):
            encode_prompt(tokenizer, wrong)


def test_settings_can_be_changed_and_a_copy_is_checked_again() -> None:
    params = SamplingParams(temperature=0)
    params.max_tokens, params.stop = 3, "x"
    assert params.with_() == SamplingParams(temperature=0, max_tokens=3, stop=["x"])
    params.temperature = -1
    with pytest.raises(InvalidArgument, match="temperature = -1"):
        params.with_()


def test_beams_are_ranked_by_the_models_own_probabilities() -> None:
    with pytest.raises(InvalidArgument, match=r"temperature = 0\.7"):
        BeamSearchParams(beam_width=2, max_tokens=4, temperature=0.7)
    with pytest.raises(InvalidArgument, match="beam_width = 0"):
        BeamSearchParams(beam_width=0, max_tokens=4)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_a_line_on_a_terminal_that_goes_away(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    stream, clock = io.StringIO(), iter([0.0, 0.05, 2.0])
    stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
    monkeypatch.setattr(batch.sys, "stderr", stream)
    monkeypatch.setattr(batch.time, "monotonic", lambda: next(clock))
    progress = batch.ProgressLine(3)
    progress.update(0, 1)
    progress.update(1, 3)
    progress.finish()
    expected = "\r\x1b[K1 of 3, 2.0 tokens/s\r\x1b[K" if is_terminal else ""
    assert stream.getvalue() == expected
