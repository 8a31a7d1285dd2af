"""Models for measurements: every format loads and computes; files have the sizes and mixtures that they should."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from models import FORMATS, MIXTURES, SHAPES, Shape, format_of, tensor_shapes, write_model
from random_blocks import Pools
from steps import logits_in_chunks, open_runner

from runtime.formats import open_model
from runtime.tokenizer import Tokenizer

TOKENS = [1, 5, 9, 33, 400, 7]


def logits_of(path: Path) -> np.ndarray:
    with open_model(path) as model:
        return logits_in_chunks(open_runner(model, max_model_len=16), TOKENS, len(TOKENS))


@pytest.mark.parametrize("fmt", [*FORMATS, *MIXTURES])
def test_every_format_gives_finite_logits_that_differ(fmt: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_model(path, SHAPES["llama-tiny"], fmt, pool_bytes=1 << 16)
    logits = logits_of(path)
    assert np.isfinite(logits).all()
    assert 1.5 < logits.std() < 6.0


@pytest.mark.parametrize("shape", ["qwen3-tiny", "qwen3-moe-tiny"])
def test_every_architecture_loads_with_a_whole_tokenizer(shape: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_model(path, SHAPES[shape], "q4_k_m", pool_bytes=1 << 16)
    assert np.isfinite(logits_of(path)).all()
    with open_model(path) as model:
        tokenizer = Tokenizer.from_gguf(model.metadata)
    assert tokenizer.vocab_size == 512
    assert tokenizer.decode(tokenizer.encode("with a cat é")) == "with a cat é"


def test_a_seed_decides_every_byte(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_model(tmp_path / name, SHAPES["llama-tiny"], "q4_0", seed=seed, pool_bytes=1 << 16)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(("fmt", "megabytes"), [("q4_0", 763), ("q4_k_m", 800), ("q8_0", 1313), ("bf16", 2471)])
def test_llama_3_2_1b_has_its_published_sizes(fmt: str, megabytes: int) -> None:
    shape = SHAPES["llama-3.2-1b"]
    total = 0
    for name, sizes in tensor_shapes(shape).items():
        if len(sizes) > 1:
            elements, block_bytes = gguf.GGML_QUANT_SIZES[format_of(name, sizes, shape, fmt)]
            total += int(np.prod(sizes)) // elements * block_bytes
    assert round(total / 1e6) == megabytes


def test_the_mixture_gives_more_bits_to_the_layers_that_llama_cpp_chooses() -> None:
    shape = SHAPES["llama-3.2-1b"]
    richer = [
        i for i in range(16) if format_of(f"blk.{i}.ffn_down.weight", (2048, 8192), shape, "q4_k_m").name == "Q6_K"
    ]
    assert richer == [0, 1, 4, 7, 10, 13, 14, 15]
    assert format_of("blk.2.attn_v.weight", (512, 2048), shape, "q4_k_m").name == "Q4_K"
    assert format_of("token_embd.weight", (128256, 2048), shape, "q4_k_m").name == "Q6_K"


@pytest.mark.parametrize("fmt", FORMATS)
def test_weights_have_mean_zero_and_the_wanted_deviation(fmt: str, tmp_path: Path) -> None:
    tensor = Pools(1, 1 << 17).tensor(FORMATS[fmt], (64, 512), 0.05)
    with (tmp_path / "weights").open("wb") as file:
        tensor.tofile(file)
    stored = np.fromfile(tmp_path / "weights", np.uint8)
    assert stored.nbytes == tensor.nbytes
    plain = {"f32": np.float32, "f16": np.float16}
    values = stored.view(plain[fmt]) if fmt in plain else gguf.quants.dequantize(stored.reshape(64, -1), FORMATS[fmt])
    assert values.std() == pytest.approx(0.05, rel=0.15)
    assert abs(values.mean()) < 0.002


def test_a_vocabulary_is_taken_over_where_its_size_fits(tmp_path: Path) -> None:
    write_model(tmp_path / "source.gguf", SHAPES["llama-tiny"], "q8_0", pool_bytes=1 << 16)
    write_model(tmp_path / "m.gguf", SHAPES["qwen3-tiny"], "q8_0", vocab=tmp_path / "source.gguf", pool_bytes=1 << 16)
    with open_model(tmp_path / "source.gguf") as source, open_model(tmp_path / "m.gguf") as copy:
        for key in source.metadata:
            if key.startswith("tokenizer."):
                a, b = source.metadata[key], copy.metadata[key]
                assert a == b or list(a) == list(b), key
    with pytest.raises(ValueError, match=r"has 512 tokens, the shape needs 2048"):
        write_model(tmp_path / "n.gguf", SHAPES["llama-small"], "q8_0", vocab=tmp_path / "source.gguf")


def test_rows_that_do_not_hold_whole_blocks_are_refused(tmp_path: Path) -> None:
    narrow = Shape("llama", 1, 64, 64, 2, 1, 32, 512, 64, 1e4)
    with pytest.raises(ValueError, match="Q4_K has blocks of 256 elements; rows of 64 do not hold them"):
        write_model(tmp_path / "m.gguf", narrow, "q4_k", pool_bytes=1 << 16)
