"""GGUF files mean the same to us as to llama.cpp: logits of every architecture and of every weight format."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from models import FORMATS, MIXTURES, SHAPES, write_model
from steps import logits_in_chunks, open_runner
from tiny_models import CONFIGS, save_model

from runtime.formats import open_model

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; docs/benchmarks.md says how to")

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

MAX_DIFFERENCE = 1e-3
"""Of the standard deviation of the logits, where the arithmetic of both is f32."""
GELU_DIFFERENCE = 5e-3
"""llama.cpp looks the tanh approximation of GELU up in a table of f16 values."""
QUANTIZED_DIFFERENCE = 0.04
"""Root mean square: llama.cpp rounds activations to 8 bits (to f16 or bf16 for such weights), we do not."""
PROMPT = [int(i) for i in np.random.default_rng(7).integers(3, 131, 21)]
MAX_MODEL_LEN = 64

DIFFERENT = {
    "mistral": "llama.cpp's llama architecture has no sliding window",
    "mixtral-window": "llama.cpp's llama architecture has no sliding window",
    "qwen2-window": "llama.cpp's qwen2 has no sliding window",
    "smollm3-window": "llama.cpp's smollm3 has no sliding window and a fixed pattern of layers without rope",
    "qwen2_moe-some-dense": "llama.cpp's qwen2moe has no dense layers and does not normalise",
    "gpt_oss-clamped": "GGUF does not hold the limits of the activation",
    "phi3": "llama.cpp ignores the sliding window of phi3",
    "phi3-longrope": "llama.cpp's contexts have 256 positions at least, more than the short factors are for",
    "gpt_oss": "llama.cpp rounds the ends of YaRN's ramp to whole numbers, the model's makers do not",
}


def peer_logits(path: Path, token_ids: list[int]) -> np.ndarray:
    from llama_cpp_peer import LlamaCpp

    n = len(token_ids)
    with LlamaCpp(path, threads=1, max_model_len=MAX_MODEL_LEN, exact=True) as peer:
        return peer.forward(token_ids, range(n), [0] * n, range(n))


def our_logits(path: Path, token_ids: list[int]) -> np.ndarray:
    with open_model(path) as model:
        return logits_in_chunks(open_runner(model, max_model_len=MAX_MODEL_LEN), token_ids, len(token_ids))


def without_tokenizer(source: Path, path: Path) -> None:
    """Copy a GGUF file, saying that it has no tokenizer: llama.cpp insists on that key."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_tokenizer_model("none")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in DIFFERENT])
def test_every_architecture_gives_the_logits_of_llama_cpp(name: str, tmp_path: Path) -> None:
    from tiny_gguf import write_gguf

    save_model(name, tmp_path)
    write_gguf(tmp_path, tmp_path / "written.gguf")
    without_tokenizer(tmp_path / "written.gguf", tmp_path / "tiny.gguf")
    expected, found = peer_logits(tmp_path / "tiny.gguf", PROMPT), our_logits(tmp_path / "tiny.gguf", PROMPT)
    limit = GELU_DIFFERENCE if name.startswith("gemma") else MAX_DIFFERENCE
    assert np.abs(found - expected).max() <= limit * expected.std()


def test_gpt_oss_differs_from_llama_cpp_in_nothing_but_the_ends_of_the_ramp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_gguf import write_gguf

    from runtime.models import describe
    from runtime.models.traits import ROWS

    rows = tuple(replace(row, rope_truncate=True) if row.name == "gpt_oss" else row for row in ROWS)
    monkeypatch.setattr(describe, "ROWS", rows)
    save_model("gpt_oss", tmp_path)
    write_gguf(tmp_path, tmp_path / "written.gguf")
    without_tokenizer(tmp_path / "written.gguf", tmp_path / "tiny.gguf")
    expected, found = peer_logits(tmp_path / "tiny.gguf", PROMPT), our_logits(tmp_path / "tiny.gguf", PROMPT)
    assert np.abs(found - expected).max() <= MAX_DIFFERENCE * expected.std()


@pytest.mark.parametrize("shape", ["llama-tiny", "qwen3-tiny", "qwen3-moe-tiny"])
def test_models_for_measurements_give_the_logits_of_llama_cpp(shape: str, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", SHAPES[shape], "f32", pool_bytes=1 << 20)
    expected, found = peer_logits(tmp_path / "m.gguf", PROMPT), our_logits(tmp_path / "m.gguf", PROMPT)
    assert expected.std() > 1
    assert np.abs(found - expected).max() <= MAX_DIFFERENCE * expected.std()


@pytest.mark.parametrize("fmt", [*FORMATS, *MIXTURES])
def test_every_format_gives_the_logits_of_llama_cpp_but_for_rounded_activations(fmt: str, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", SHAPES["llama-tiny"], fmt, pool_bytes=1 << 20)
    expected, found = peer_logits(tmp_path / "m.gguf", PROMPT), our_logits(tmp_path / "m.gguf", PROMPT)
    assert np.sqrt(np.mean((found - expected) ** 2)) <= QUANTIZED_DIFFERENCE * expected.std()
