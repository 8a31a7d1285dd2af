"""GGUF files mean the same to us as to llama.cpp: logits of every architecture and of every weight format."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from steps import logits_in_chunks, open_runner
from tiny_models import CONFIGS, save_model

from runtime.formats import open_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; docs/benchmarks.md says how to")

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

MAX_DIFFERENCE = 1e-3
"""Of the standard deviation of the logits, where the arithmetic of both is f32."""
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
    assert np.abs(found - expected).max() <= MAX_DIFFERENCE * expected.std()


@pytest.mark.parametrize("shape", ["llama-tiny", "qwen3-tiny", "qwen3-moe-tiny"])
def test_models_for_measurements_give_the_logits_of_llama_cpp(shape: str, tmp_path: Path) -> None:
    from models import SHAPES, write_model

    write_model(tmp_path / "m.gguf", SHAPES[shape], "f32", pool_bytes=1 << 20)
    expected, found = peer_logits(tmp_path / "m.gguf", PROMPT), our_logits(tmp_path / "m.gguf", PROMPT)
    assert expected.std() > 1
    assert np.abs(found - expected).max() <= MAX_DIFFERENCE * expected.std()
