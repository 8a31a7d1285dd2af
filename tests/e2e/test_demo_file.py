"""The packaged demo model as a file: size, header, and what other people's programs read from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from runtime.models.demo import demo_model_path

QUESTIONS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data/demo_questions.json").read_text())


@pytest.fixture(scope="module")
def header() -> dict[str, Any]:
    reader = gguf.GGUFReader(demo_model_path())
    return {name: field.contents() for name, field in reader.fields.items()}


def conversation(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [*row.get("history", []), {"role": "user", "content": row["question"]}]


def test_the_demo_file_stays_below_four_megabytes() -> None:
    assert demo_model_path().stat().st_size <= 4_000_000


def test_the_header_names_architecture_licence_and_context(header: dict[str, Any]) -> None:
    assert header["general.architecture"] == "llama"
    assert header["general.name"] == "runtime demo"
    assert header["general.license"] == "Apache-2.0"
    assert header["llama.context_length"] == 1024


def test_every_byte_is_a_token(header: dict[str, Any]) -> None:
    assert len(set(header["tokenizer.ggml.tokens"]) & set(_byte_alphabet())) == 256


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return list(ByteLevel.alphabet())


def test_the_end_token_is_the_end_of_a_message_and_special_tokens_are_control(header: dict[str, Any]) -> None:
    tokens, kinds = header["tokenizer.ggml.tokens"], header["tokenizer.ggml.token_type"]
    assert tokens[header["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    assert tokens[header["tokenizer.ggml.bos_token_id"]] == "<|bos|>"
    assert [t for t, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL] == [
        "<|bos|>", "<|im_start|>", "<|im_end|>", "<|pad|>",
    ]  # fmt: skip


def test_matrices_are_q8_0_and_the_head_is_the_embedding() -> None:
    tensors = gguf.GGUFReader(demo_model_path()).tensors
    assert {t.tensor_type.name for t in tensors if len(t.shape) == 2} == {"Q8_0"}
    assert {t.tensor_type.name for t in tensors if len(t.shape) == 1} == {"F32"}
    assert "output.weight" not in {t.name for t in tensors}


def test_the_chat_template_renders_system_tools_calls_and_results(header: dict[str, Any]) -> None:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters["tojson"] = json.dumps
    call = {"type": "function", "function": {"name": "get_time", "arguments": {"city": "Rome"}}}
    text = environment.from_string(header["tokenizer.chat_template"]).render(
        bos_token="<|bos|>",
        tools=[{"name": "get_time"}],
        messages=[
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "What time is it in Rome?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": '{"time": "9:30"}'},
        ],
        add_generation_prompt=True,
    )
    assert text == (
        '<|bos|><|im_start|>system\nBe short.\nTools:\n{"name": "get_time"}<|im_end|>\n'
        "<|im_start|>user\nWhat time is it in Rome?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>{"name": "get_time", "arguments": {"city": "Rome"}}</tool_call><|im_end|>\n'
        '<|im_start|>tool\n{"time": "9:30"}<|im_end|>\n<|im_start|>assistant\n'
    )


def test_the_questions_cover_every_kind() -> None:
    assert len(QUESTIONS) >= 110
    assert {"fact", "story", "tool_call", "chat", "json_object", "copying", "count"} <= {
        row["kind"] for row in QUESTIONS
    }


@pytest.mark.oracle
@pytest.mark.slow
def test_transformers_answers_every_question_as_recorded(header: dict[str, Any]) -> None:
    import torch
    import transformers

    path = demo_model_path()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for row in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            conversation(row), tools=row.get("tools"), tokenize=False, add_generation_prompt=True,
            chat_template=header["tokenizer.chat_template"],
        )  # fmt: skip
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        end = header["tokenizer.ggml.eos_token_id"]
        said = model.generate(ids, max_new_tokens=200, do_sample=False, eos_token_id=end, pad_token_id=end)
        assert tokenizer.decode(said[0, ids.shape[1] :]).removesuffix("<|im_end|>") == row["answer"], row["question"]
