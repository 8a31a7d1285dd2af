"""What is wrong with a file, an option or a prompt is told in one message with values and a remedy: exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("plugins")


def truncated(tiny: Path, hf: Path, folder: Path) -> list[object]:
    (folder / "cut.gguf").write_bytes(tiny.read_bytes()[:-1000])
    return ["run", "-m", folder / "cut.gguf", "hi"]


def cut_in_the_header(tiny: Path, hf: Path, folder: Path) -> list[object]:
    (folder / "cut.gguf").write_bytes(tiny.read_bytes()[:200])
    return ["inspect", folder / "cut.gguf"]


def other_version(tiny: Path, hf: Path, folder: Path) -> list[object]:
    (folder / "new.gguf").write_bytes(b"GGUF\x09\0\0\0" + tiny.read_bytes()[8:])
    return ["inspect", folder / "new.gguf"]


def flipped(tiny: Path, hf: Path, folder: Path) -> list[object]:
    data = bytearray(tiny.read_bytes())
    data[15] ^= 0x40  # the highest byte of the number of tensors
    (folder / "flip.gguf").write_bytes(data)
    return ["plan", folder / "flip.gguf", "--backend", "tiny"]


def no_model(tiny: Path, hf: Path, folder: Path) -> list[object]:
    (folder / "page.gguf").write_text("<!DOCTYPE html><html>404</html>")
    return ["tokenize", folder / "page.gguf", "hi"]


def absent_file(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", folder / "nowhere.gguf", "hi"]


def no_config(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", folder, "hi"]


def missing_shard(tiny: Path, hf: Path, folder: Path) -> list[object]:
    shutil.copy(hf / "config.json", folder)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return ["run", "-m", folder, "hi"]


def no_tokenizer(tiny: Path, hf: Path, folder: Path) -> list[object]:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(hf / name, folder)
    return ["run", "-m", folder, "hi"]


def long_prompt(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", tiny, "--backend", "tiny", "--raw", "x" * 200]


def large_context(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", tiny, "--ctx", "4096", "hi"]


def unknown_backend(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", tiny, "--backend", "tinny", "hi"]


def absent_backend(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", tiny, "--backend", "absent", "hi"]


def broken_backend(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", tiny, "--backend", "broken", "hi"]


def crashing_backend(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", tiny, "--backend", "crashing", "hi"]


def unknown_place(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", tiny, "--backend", "tiny", "--place", "layers.*=gpu", "hi"]


def unknown_kv_format(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", tiny, "--backend", "tiny", "--kv-format", "q9", "hi"]


def negative_temperature(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", tiny, "--temp", "-1", "hi"]


def two_prompts(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", tiny, "hi", "-p", "ho"]


def system_in_raw(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", tiny, "--raw", "--system", "x", "hi"]


def broken_template(tiny: Path, hf: Path, folder: Path) -> list[object]:
    (folder / "t.jinja").write_text("{% for m in %}")
    return ["run", "-m", tiny, "--backend", "tiny", "--chat-template", folder / "t.jinja", "hi"]


def wrong_bias(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "-m", tiny, "--logit-bias", "x", "hi"]


def no_such_option(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["run", "--no-such-option"]


def no_such_verb(tiny: Path, hf: Path, folder: Path) -> list[object]:
    return ["frobnicate"]


CASES = [
    (truncated, "truncated or damaged: download it again"),
    (cut_in_the_header, "truncated or damaged: download it again"),
    (other_version, "version 9"),
    (flipped, "tensors"),
    (no_model, "it seems to be a web page"),
    (absent_file, "No such file or directory"),
    (no_config, "has no config.json"),
    (missing_shard, "1 are missing: model-00001-of-00002.safetensors"),
    (no_tokenizer, "tokenizer.json"),
    (long_prompt, "prompt has 201 tokens, context is 128"),
    (large_context, "a context of 4096 tokens was asked for, the model was made for 128"),
    (unknown_backend, "there is no backend 'tinny'; did you mean 'tiny'?"),
    (absent_backend, "backend 'absent' cannot run here: no chip on the bus"),
    (broken_backend, "was rejected at stage import: No module named 'libacme_that_is_missing'"),
    (crashing_backend, "crashed with SIGABRT"),
    (unknown_place, "placement 'layers.*=gpu': there is no backend 'gpu'; did you mean"),
    (unknown_kv_format, "keeps no KV cache in q9"),
    (negative_temperature, "temperature = -1.0: it must be 0 (greedy) or positive"),
    (two_prompts, "the prompt was given more than once"),
    (system_in_raw, "--system has no place in a raw prompt"),
    (broken_template, "the chat template is wrong in line 1"),
    (wrong_bias, "'x' is not of the form ID=NUMBER"),
    (no_such_option, "unrecognized arguments: --no-such-option"),
    (no_such_verb, "'frobnicate' is no verb; verbs are run, serve, backends"),
]


@pytest.mark.parametrize(("make", "message"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_bad_input_is_one_error_with_exit_code_2(
    command: Callable, tiny: Path, hf_model: Path, tmp_path: Path, make: Callable, message: str
) -> None:
    result = command(*make(tiny, hf_model, tmp_path))
    assert result.code == 2
    assert result.out == ""
    assert message in result.err
    assert "error: " in result.err
    assert "Traceback" not in result.err


def test_a_nan_weight_is_found_when_asked_for(command: Callable, tmp_path: Path, write_model: Callable) -> None:
    path = tmp_path / "nan.gguf"
    write_model(path, nan_in="blk.1.ffn_up.weight")
    result = command("run", "-m", path, "--backend", "tiny", "--check-tensors", "hi")
    assert result.code == 2
    assert "tensor 'blk.1.ffn_up.weight' (f32[64, 32]) holds nan at [0, 3]" in result.err


def test_errors_as_json_are_one_object_with_code_and_remedy(command: Callable, tiny: Path) -> None:
    (event,) = command("run", "-m", tiny, "--backend", "absent", "--json", "hi").events
    assert event["event"] == "error"
    assert event["code"] == "plugin_rejected"
    assert "use --backend auto; details: runtime doctor absent" in event["remedy"]


def test_an_unknown_architecture_is_refused_by_name_with_what_is_supported(
    command: Callable, tmp_path: Path, write_model: Callable
) -> None:
    write_model(tmp_path / "m.gguf", architecture="mamba9")
    result = command("run", "-m", tmp_path / "m.gguf", "hi")
    assert result.code == 2
    assert "architecture 'mamba9' is not supported" in result.err
    assert "llama" in result.err
