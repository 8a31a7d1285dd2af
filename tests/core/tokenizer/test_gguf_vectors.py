"""Vocabularies of real models against the vectors that llama.cpp keeps for them."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from runtime.tokenizer import Tokenizer

SHARED = Path(os.environ.get("RUNTIME_SHARED") or Path(__file__).resolve().parents[4] / "shared")
VOCABULARIES = sorted((SHARED / "data" / "vocab").glob("*.gguf"))
SEPARATOR = "\n__ggml_vocab_test__\n"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

pytestmark = pytest.mark.skipif(not VOCABULARIES, reason="../shared/data/vocab is absent")


def read_metadata(path: Path) -> dict[str, Any]:
    """The key-value section of a little-endian GGUF file; the package's own reader is another room's."""
    data, position = path.read_bytes(), 24

    def string() -> str:
        nonlocal position
        (size,) = struct.unpack_from("<Q", data, position)
        position += 8 + size
        return data[position - size : position].decode("utf-8")

    def value(kind: int) -> Any:
        nonlocal position
        if kind == 8:
            return string()
        if kind == 9:
            element, count = struct.unpack_from("<IQ", data, position)
            position += 12
            if element == 8:
                return [string() for _ in range(count)]
            items = struct.unpack_from(f"<{count}{SCALARS[element]}", data, position)
            position += struct.calcsize(f"<{count}{SCALARS[element]}")
            return list(items)
        (item,) = struct.unpack_from("<" + SCALARS[kind], data, position)
        position += struct.calcsize("<" + SCALARS[kind])
        return item

    metadata = {}
    (num_keys,) = struct.unpack_from("<Q", data, 16)
    for _ in range(num_keys):
        key = string()
        (kind,) = struct.unpack_from("<I", data, position)
        position += 4
        metadata[key] = value(kind)
    return metadata


@pytest.fixture(scope="module", params=VOCABULARIES, ids=[path.stem for path in VOCABULARIES])
def case(request: pytest.FixtureRequest) -> tuple[Path, Tokenizer]:
    return request.param, Tokenizer.from_gguf(read_metadata(request.param))


def test_every_vector_is_exact_and_comes_back(case: tuple[Path, Tokenizer]) -> None:
    path, tokenizer = case
    inputs = Path(f"{path}.inp").read_text(encoding="utf-8").split(SEPARATOR)
    outputs = Path(f"{path}.out").read_text(encoding="utf-8").split("\n")[: len(inputs)]
    assert len(inputs) == 47
    for text, line in zip(inputs, outputs):
        token_ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert token_ids == [int(number) for number in line.split()], text
        if tokenizer.model != "wordpiece":
            assert tokenizer.decode(token_ids) == text
            decoder = tokenizer.incremental_decoder()
            assert "".join([*map(decoder.push, token_ids), decoder.flush()]) == text


def test_special_tokens_and_what_is_put_around_a_text(case: tuple[Path, Tokenizer]) -> None:
    path, tokenizer = case
    bos, eos, ends, around = {
        "ggml-vocab-bert-bge": ("[CLS]", None, set(), ([101], [102])),
        "ggml-vocab-gpt-2": ("<|endoftext|>", "<|endoftext|>", {"<|endoftext|>"}, ([], [])),
        "ggml-vocab-llama-bpe": (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            {"<|end_of_text|>", "<|eot_id|>"},
            ([128000], []),
        ),
        "ggml-vocab-llama-spm": ("<s>", "</s>", {"</s>"}, ([1], [])),
        "ggml-vocab-phi-3": ("<s>", "<|endoftext|>", {"<|endoftext|>", "<|end|>", "</s>"}, ([1], [])),
        "ggml-vocab-qwen2": ("<|endoftext|>", "<|endoftext|>", {"<|endoftext|>", "<|im_end|>"}, ([], [])),
    }[path.stem]
    assert (tokenizer.bos_token, tokenizer.eos_token) == (bos, eos)
    assert {tokenizer.token_text(token_id) for token_id in tokenizer.eos_token_ids} == ends
    bare = tokenizer.encode("Hello", add_special=False)
    assert tokenizer.encode("Hello") == [*around[0], *bare, *around[1]]


def test_bos_is_never_doubled(case: tuple[Path, Tokenizer]) -> None:
    _, tokenizer = case
    if tokenizer.adds_bos:
        assert tokenizer.encode(f"{tokenizer.bos_token} Hello").count(tokenizer.bos_token_id) == 1
        as_text = tokenizer.encode(f"{tokenizer.bos_token} Hello", parse_special=False)
        assert as_text.count(tokenizer.bos_token_id) == 1


def test_control_tokens_never_come_from_plain_text(case: tuple[Path, Tokenizer]) -> None:
    _, tokenizer = case
    for token_id in sorted(tokenizer.special_ids)[:64]:
        text = tokenizer.token_text(token_id)
        assert token_id in tokenizer.encode(text, add_special=False)
        if text != "[UNK]":
            assert token_id not in tokenizer.encode(text, add_special=False, parse_special=False), text


def test_phi3_special_tokens_swallow_the_space_behind_them() -> None:
    path = next(path for path in VOCABULARIES if "phi-3" in path.stem)
    tokenizer = Tokenizer.from_gguf(read_metadata(path))
    assert tokenizer.encode("<|user|>\nHi<|end|>\n<|assistant|>\n") == [1, 32010, 6324, 32007, 32001]


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["llama-bpe", "gpt-2", "qwen2"])
def test_random_texts_agree_with_the_merging_of_tokenizers(name: str) -> None:
    import random

    import tokenizers
    from tokenizers import models, pre_tokenizers

    from runtime.tokenizer.pretokenizers import find_pretokenizer

    metadata = read_metadata(SHARED / "data" / "vocab" / f"ggml-vocab-{name}.gguf")
    tokenizer = Tokenizer.from_gguf(metadata)
    tokens = metadata["tokenizer.ggml.tokens"]
    rule = find_pretokenizer(name)
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    other = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=rule.whole_words))
    splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in rule.patterns]
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    rng = random.Random(7)
    alphabets = [
        "abcdefgh \n",
        "etaoin shrdlu' \t\r\n.,!",
        "0123456789 .-",
        "äöüßéñ àÀ",
        "нещо на",
        "我想在工作天～",
        "😁🦙‍️",
        "\u0301\u200b\x00\x1f",
    ]
    for _ in range(2000):
        alphabet = rng.choice(alphabets) + rng.choice(alphabets)
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(60)))
        token_ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert token_ids == other.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(token_ids) == text
