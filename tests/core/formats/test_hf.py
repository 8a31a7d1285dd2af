"""Hugging Face directories and single safetensors files."""

from __future__ import annotations

import json
import random
import struct

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from runtime.errors import InvalidArgument, MalformedFile, NumericFault, RuntimeFault, Unsupported
from runtime.formats import open_model

TENSORS = {
    "model.embed_tokens.weight": np.arange(24, dtype=np.float32).reshape(6, 4),
    "model.norm.weight": np.ones(4, dtype=np.float16),
    "counts": np.array([[1, -2]], dtype=np.int64),
    "scalar": np.array(3.5, dtype=np.float32),
}
CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 4, "limit": float("inf")}


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def sharded(directory):
    names = list(TENSORS)
    shards = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for shard, members in shards.items():
        save_file({name: TENSORS[name] for name in members}, directory / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def check(model):
    assert model.kind == "hf"
    assert model.metadata == CONFIG
    assert set(model.tensors) == set(TENSORS)
    assert model.nbytes == 96 + 8 + 16 + 4
    for name, tensor in TENSORS.items():
        assert model.tensors[name].shape == tensor.shape
        assert bytes(model.data(name)) == tensor.tobytes()
        np.testing.assert_array_equal(model.tensor_as_numpy(name), tensor)
    model.check_tensors()


def test_a_directory_with_one_file_is_read_back(directory):
    save_file(TENSORS, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "generation_config.json").write_text('{"temperature": 0.6}')
    (directory / "tokenizer.json").write_text("{}")
    with open_model(directory) as model:
        check(model)
        assert model.generation_config == {"temperature": 0.6}
        assert model.tokenizer_files == {"tokenizer.json": directory / "tokenizer.json"}
        assert list(model.files) == [directory / "model.safetensors"]


def test_a_safetensors_file_beside_its_config_is_read_back(directory):
    save_file(TENSORS, directory / "weights.safetensors")
    with open_model(directory / "weights.safetensors") as model:
        check(model)
        assert (model.generation_config, model.tokenizer_files) == ({}, {})


def test_shards_are_read_back_from_the_directory_and_from_any_shard(sharded):
    for path in (sharded, *sorted(sharded.glob("*.safetensors"))):
        with open_model(path) as model:
            check(model)
            assert [file.name for file in model.files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


def test_a_nan_in_a_safetensors_file_is_named(directory):
    save_file({"w": np.array([[0, 1], [np.inf, 0]], dtype=np.float16)}, directory / "model.safetensors")
    with (
        open_model(directory) as model,
        pytest.raises(NumericFault, match=r"'w' \(f16\[2, 2\]\) holds inf at \[1, 0\]"),
    ):
        model.check_tensors()


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MalformedFile, match=r"names 2 shards, 1 are missing: model-00002-of-00002.safetensors"):
        open_model(sharded)


def test_a_shard_without_its_index_is_refused(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(InvalidArgument, match=r"is a shard, and there is no model.safetensors.index.json"):
        open_model(sharded / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"ghost": "model-00001-of-00002.safetensors"}}, "tensor 'ghost' is in model-00001"),
        ({"weight_map": {"w": "../outside.safetensors"}}, "names '../outside.safetensors'; a shard is"),
        ({"weight_map": {"w": "model.bin"}}, "names 'model.bin'; a shard is a .safetensors file"),
        ({"weight_map": {"w": 3}}, "expected names of tensors and files"),
        ({}, "weight_map is NoneType"),
        ([], "holds a list, expected an object"),
    ],
)
def test_a_broken_index_is_refused(index, message, sharded):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MalformedFile, match=message):
        open_model(sharded)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "tensors overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "'b' begins at byte .* inside 'a'"),
    "there is a gap": ({"a": entry(), "b": entry(offsets=(12, 20))}, 20, "'b' begins at byte .* the tensor before it"),
    "the file is short": ({"a": entry()}, 6, "; 2 are missing"),
    "the file is long": ({"a": entry()}, 11, "; 3 belong to no tensor"),
    "the size is wrong": ({"a": entry(shape=(3,))}, 8, "takes 12 bytes, its data_offsets .* span 8"),
    "offsets run backwards": ({"a": entry(offsets=(8, 0))}, 8, "span -8"),
    "dims overflow": ({"a": entry(shape=(1 << 40, 1 << 40))}, 8, r"more than 2\*\*63 bytes"),
    "a dim is negative": ({"a": entry(shape=(-1,))}, 8, r"shape \[-1\]"),
    "a dim is true": ({"a": entry(shape=(True,))}, 8, r"shape \[True\]"),
    "an entry is a list": ({"a": []}, 0, "expected an object"),
    "a dtype is a number": ({"a": entry(dtype=3)}, 8, "dtype 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_safetensors_header_is_refused_when(case, directory):
    header, size, message = HEADERS[case]
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    with pytest.raises(MalformedFile, match=message):
        open_model(directory)


RAW = {
    "it is empty": (b"", MalformedFile, "an empty file"),
    "it is a few bytes": (b"\5\0\0\0", MalformedFile, "4 bytes, too short"),
    "its header is longer than the file": (struct.pack("<Q", 99) + b"{}", MalformedFile, "should take 99 bytes"),
    "its header needs terabytes": (struct.pack("<Q", 1 << 42) + b"{}", MalformedFile, "should take 4398046511104 bytes"),
    "its header is no JSON": (struct.pack("<Q", 3) + b"{a}", MalformedFile, "not valid JSON"),
    "its header is not UTF-8": (struct.pack("<Q", 4) + b'{"\xff"', MalformedFile, "not UTF-8"),
    "a name comes twice": (struct.pack("<Q", 15) + b'{"a":{},"a":{}}', MalformedFile, "key 'a' appears twice"),
    "its header nests too deep": (struct.pack("<Q", 99999) + b'{"a":' + b"[" * 99994, MalformedFile, "nests too deep"),
    "a number is endless": (struct.pack("<Q", 9006) + b'{"a":' + b"1" * 9000 + b"}", MalformedFile, "header|entry"),
    "it is an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", MalformedFile, "git lfs pull"),
    "it is a GGUF file": (b"GGUF" + bytes(60), MalformedFile, "a GGUF file; give it the suffix .gguf"),
    "it is a pickle": (b"PK\x03\x04" + bytes(60), Unsupported, "PyTorch pickle"),
}  # fmt: skip


@pytest.mark.parametrize("case", RAW)
def test_a_safetensors_file_is_refused_when(case, directory):
    content, error, message = RAW[case]
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(error, match=message):
        open_model(directory / "model.safetensors")


def test_an_unknown_dtype_is_refused_by_name(directory):
    text = json.dumps({"a": entry(dtype="F4_MAGIC")}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(Unsupported, match=r"tensor 'a' has dtype 'F4_MAGIC', which is unknown; known: .*bf16"):
        open_model(directory)


def test_a_directory_without_config_or_weights_says_what_is_missing(tmp_path):
    with pytest.raises(InvalidArgument, match=r"no config.json"):
        open_model(tmp_path)
    (tmp_path / "model-q8_0.gguf").touch()
    with pytest.raises(InvalidArgument, match=r"did you mean '.*model-q8_0.gguf'"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidArgument, match=r"no weights: neither model.safetensors nor"):
        open_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        Unsupported, match=r"pytorch_model.bin' is a PyTorch pickle checkpoint.*convert it to safetensors"
    ):
        open_model(tmp_path)
    (tmp_path / "consolidated.safetensors").touch()
    with pytest.raises(InvalidArgument, match=r"give the file itself, e.g. '.*consolidated.safetensors'"):
        open_model(tmp_path)


def test_a_safetensors_file_without_config_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(InvalidArgument, match=r"no config.json beside"):
        open_model(tmp_path / "model.safetensors")


def test_a_config_that_is_no_json_object_is_malformed(directory):
    for text, message in (("{", "not valid JSON"), ("[]", "holds a list"), ("<html>", "seems to be a web page")):
        (directory / "config.json").write_text(text)
        with pytest.raises(MalformedFile, match=message):
            open_model(directory)


def test_damaged_headers_are_refused_exactly_where_the_safetensors_library_refuses_them(directory):
    save_file(TENSORS, directory / "model.safetensors", metadata={"format": "pt"})
    whole = (directory / "model.safetensors").read_bytes()
    rng = random.Random(3)
    verdicts = {True: 0, False: 0}
    for _ in range(1500):
        data = bytearray(whole)
        at = rng.randrange(len(data) - 1)
        if rng.random() < 0.4:
            data[at] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.7:
            data[at] = rng.choice(b'0123456789[]{},":-')
        else:
            del data[at : at + rng.randrange(1, 9)]
        if 0x7F in data[8 : data.find(b"}}")]:
            continue  # DEL in a name: the library allows it, we do not, since names are printed
        path = directory / "damaged.safetensors"
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        try:
            open_model(path).close()
            do_we_open = True
        except RuntimeFault:
            do_we_open = False
        try:
            safe_open(path, "np")
            does_the_library = True
        except SafetensorError:
            does_the_library = False
        assert do_we_open == does_the_library, bytes(data)
        verdicts[do_we_open] += 1
    assert min(verdicts.values()) > 100, verdicts
