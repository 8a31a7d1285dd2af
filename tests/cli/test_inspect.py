"""`runtime inspect` and `runtime tokenize`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def facts_of(text: str) -> dict[str, str]:
    """What follows each label; continued lines belong to the label above."""
    facts: dict[str, str] = {}
    label = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            label, _, line = line.partition("  ")
        facts[label] = f"{facts.get(label, '')} {line.strip()}".strip()
    return facts


def test_inspect_shows_architecture_sizes_and_formats(command: Callable, tiny: Path) -> None:
    result = command("inspect", tiny)
    facts = facts_of(result.out)
    assert result.code == 0
    assert facts["name"] == "Tiny Random"
    assert facts["architecture"] == "llama · 35,360 parameters"
    assert facts["license"] == "apache-2.0"
    assert facts["weights"] == "141 KB, 32.00 bits each: f32 141 KB (21 tensors)"
    assert facts["sizes"].startswith("hidden_size 32 · intermediate_size 64 · num_layers 2 · num_heads 4")
    assert facts["context"].startswith("128 tokens · KV cache per token 256 B as f32, 128 B as f16;")
    assert facts["rope"] == "theta 10000, 8 elements of a head"
    assert "262 tokens, 5 of them special · BOS 256 <|bos|> (added) · EOS 257 <|end|>" in facts["tokenizer"]
    assert facts["chat template"] == "default (127 characters)"
    assert max(map(len, result.out.splitlines())) <= 120


def test_inspect_lists_tensors_and_metadata(command: Callable, tiny: Path) -> None:
    result = command("inspect", tiny, "--tensors", "--metadata")
    assert "llama.block_count  2" in result.out
    assert '"... 262 elements"]' in result.out
    rows = [line.split() for line in result.out.splitlines()]
    assert ["blk.1.ffn_down.weight", "f32", "8.19", "KB", "32", "x", "64"] in rows


def test_inspect_as_json_is_one_object(command: Callable, tiny: Path) -> None:
    (facts,) = command("inspect", tiny, "--json", "--tensors", "--metadata").events
    assert facts["event"] == "model"
    assert facts["num_parameters"] == 35360
    assert facts["sizes"]["head_dim"] == 8
    assert facts["formats"] == [{"format": "f32", "num_tensors": 21, "num_parameters": 35360, "bytes": 141440}]
    assert facts["kv_bytes_per_token"] == {"f32": 256, "f16": 128}
    assert facts["tokenizer"]["end_of_generation"] == [{"id": 257, "text": "<|end|>"}]
    assert facts["metadata"]["llama.context_length"] == 128
    assert len(facts["tensors"]) == 21
    assert facts["refusals"] == []


def test_an_architecture_that_cannot_run_is_still_described(
    command: Callable, tmp_path: Path, write_model: Callable
) -> None:
    write_model(tmp_path / "new.gguf", architecture="mamba9")
    result = command("inspect", tmp_path / "new.gguf")
    assert result.code == 2
    assert facts_of(result.out)["architecture"] == "mamba9 · 35,360 parameters"
    assert "num_layers 2" in result.out
    assert "error: architecture 'mamba9' is not supported" in result.err
    assert "supported: " in result.err
    (facts,) = command("inspect", tmp_path / "new.gguf", "--json").events
    assert facts["refusals"][0]["code"] == "unsupported"


def test_inspect_describes_the_demo_model_without_a_path(command: Callable) -> None:
    result = command("inspect")
    assert result.code == 0
    assert facts_of(result.out)["architecture"].startswith("llama")


def test_tokenize_shows_ids_with_readable_pieces(command: Callable, tiny: Path) -> None:
    result = command("tokenize", tiny, "th\né<|end|>")
    assert result.code == 0
    assert [line.strip() for line in result.out.splitlines()] == [
        "256  <|bos|>",
        '261  "th"',
        '10  "\\n"',
        "195  bytes c3",
        "169  bytes a9",
        "257  <|end|>",
    ]


def test_tokenize_without_special_tokens(command: Callable, tiny: Path) -> None:
    assert command("tokenize", tiny, "a<|end|>", "--ids").out == "256 97 257\n"
    assert command("tokenize", tiny, "a<|end|>", "--ids", "--no-bos").out == "97 257\n"
    assert command("tokenize", tiny, "<|end|>", "--ids", "--no-special", "--no-parse-special").out.split() == [
        str(b) for b in b"<|end|>"
    ]
    assert command("tokenize", tiny, "", "--ids", "--no-bos").out == "\n"


def test_tokenize_as_json_tells_bytes_of_tokens_that_are_no_characters(command: Callable, tiny: Path) -> None:
    (event,) = command("tokenize", tiny, "aé", "--json", "--no-bos").events
    assert event["token_ids"] == [97, 195, 169]
    assert event["tokens"][0] == {"id": 97, "text": "a", "bytes": "61", "is_special": False}
    assert event["tokens"][1] == {"id": 195, "text": None, "bytes": "c3", "is_special": False}


def test_tokenize_reads_standard_input_as_it_is(process: Callable, tiny: Path) -> None:
    result = process("tokenize", tiny, "-", "--ids", "--no-bos", stdin="a b\n")
    assert (result.code, result.out, result.err) == (0, "97 32 98 10\n", "")


def test_a_vocabulary_without_weights_tokenizes_and_is_described(command: Callable, shared: Path) -> None:
    path = shared / "data/vocab/ggml-vocab-gpt-2.gguf"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    assert command("tokenize", path, "Hello world", "--ids").out == "15496 995\n"
    result = command("inspect", path)
    assert result.code == 2
    assert "holds no weights" in result.err
    assert "50257 tokens" in result.out


def test_a_hugging_face_directory_is_described(command: Callable, hf_model: Path) -> None:
    (facts,) = command("inspect", hf_model, "--json").events
    assert facts["kind"] == "hf"
    assert facts["architecture"] == "llama"
    assert facts["refusals"] == []
    assert json.loads((hf_model / "config.json").read_text())["hidden_size"] == facts["sizes"]["hidden_size"]
