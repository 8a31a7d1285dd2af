"""Models in several GGUF files."""

from __future__ import annotations

import shutil
import struct

import gguf
import numpy as np
import pytest

from runtime.errors import MalformedFile
from runtime.formats import open_model

TENSORS = {f"t{i}": np.full((2, 8), i, dtype=np.float32) for i in range(5)}


@pytest.fixture
def split(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    writer.add_uint32("test.key", 7)
    for name, tensor in TENSORS.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [tmp_path / f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]


@pytest.mark.parametrize("part", [0, 1, 2])
def test_any_part_of_a_split_opens_all_parts(split, part):
    with open_model(split[part]) as model:
        assert list(model.files) == split
        assert model.path == split[part]
        assert model.metadata["test.key"] == 7
        assert model.metadata["split.count"] == 3
        assert list(model.tensors) == list(TENSORS)
        for name, tensor in TENSORS.items():
            np.testing.assert_array_equal(model.tensor_as_numpy(name), tensor)


def test_a_missing_part_is_named(split):
    split[1].unlink()
    with pytest.raises(MalformedFile, match=r"1 of 3 parts are missing from its folder: m-00002-of-00003.gguf"):
        open_model(split[0])


def test_a_part_under_a_name_that_says_nothing_is_refused(split):
    shutil.move(split[0], split[0].with_name("model.gguf"))
    with pytest.raises(MalformedFile, match=r"split.count says 3 parts.*NAME-00001-of-00003.gguf"):
        open_model(split[0].with_name("model.gguf"))


def test_a_name_with_another_count_is_refused(split):
    shutil.move(split[0], split[0].with_name("m-00001-of-00004.gguf"))
    with pytest.raises(MalformedFile, match=r"name says 4 parts, its split.count says 3"):
        open_model(split[0].with_name("m-00001-of-00004.gguf"))


def test_parts_out_of_order_are_refused(split):
    shutil.copy(split[2], split[1])
    with pytest.raises(MalformedFile, match=r"split.no is 2, expected 1: the part belongs to another split"):
        open_model(split[0])


def part(make_gguf, number, tensors, total, **options):
    keys = [("split.no", 2, struct.pack("<H", number)), ("split.count", 2, struct.pack("<H", 2))]
    keys.append(("split.tensors.count", 5, struct.pack("<i", total)))
    return make_gguf(keys, [(name, (8,), 0, 0) for name in tensors], bytes(32 * len(tensors)), **options)


@pytest.mark.parametrize(
    ("second", "totals", "message"),
    [
        ("a", (2, 2), "tensor 'a' is also in m-00001-of-00002.gguf"),
        ("b", (3, 3), "split.tensors.count is 3, the 2 parts hold 2 tensors"),
        ("b", (2, 9), "split.tensors.count is 9, expected 2"),
    ],
)
def test_parts_that_disagree_are_refused(second, totals, message, make_gguf, save):
    first = save(part(make_gguf, 0, "a", totals[0]), "m-00001-of-00002.gguf")
    save(part(make_gguf, 1, second, totals[1]), "m-00002-of-00002.gguf")
    with pytest.raises(MalformedFile, match=message):
        open_model(first)


def test_a_split_of_one_part_is_an_ordinary_file(make_gguf, save):
    with open_model(save(make_gguf(), "m-00001-of-00001.gguf")) as model:
        assert len(model.files) == 1
