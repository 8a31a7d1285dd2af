"""GGUF files that break the format, each refused with the values and the rule."""

from __future__ import annotations

import os
import struct
import time

import pytest

from runtime.errors import InvalidArgument, MalformedFile, NumericFault, Unsupported
from runtime.formats import open_model

F32, Q8_0 = 0, 8
U8, U32, BOOL, STRING, ARRAY = 0, 4, 7, 8, 9


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def array(kind: int, length: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + values


def nested(depth: int) -> bytes:
    return b"".join(array(ARRAY, 1) for _ in range(depth)) + array(U8, 0)


TENSORS = {
    "two tensors overlap": ([("a", (16,), F32, 0), ("b", (8,), F32, 32)], "inside 'a', which ends at"),
    "an offset is not aligned": ([("a", (1,), F32, 4)], "offset 4, not a multiple of the alignment 32"),
    "a tensor lies outside": ([("a", (1 << 20,), F32, 0)], "ends at byte 4194"),
    "an offset lies outside": ([("a", (1,), F32, 1 << 50)], "ends at byte 11258999068"),
    "dims overflow": ([("a", (1 << 32, 1 << 32), F32, 0)], r"more than 2\*\*63 bytes"),
    "a zero hides an overflow": ([("a", (0, 1 << 62, 1 << 62), F32, 0)], r"more than 2\*\*63 bytes"),
    "a dim is negative as int64": ([("a", (0, 1 << 63), F32, 0)], r"more than 2\*\*63 bytes"),
    "too many dims": ([("a", (1,) * 5, F32, 0)], "5 dimensions, GGUF allows 4"),
    "a row is no whole blocks": ([("a", (48,), Q8_0, 0)], "blocks of 32 elements"),
    "a block tensor has no dims": ([("a", (), Q8_0, 0)], "blocks of 32 elements"),
    "a name comes twice": ([("a", (1,), F32, 0), ("a", (1,), F32, 32)], "'a' a second time"),
    "a name could steer a terminal": ([("a\x1b[2J", (1,), F32, 0)], r"has the unprintable name 'a\\x1b\[2J'"),
    "a name is empty": ([("", (1,), F32, 0)], "tensor 0 has no name"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_broken_tensor_entry_is_refused_when(case, make_gguf, save):
    tensors, message = TENSORS[case]
    with pytest.raises(MalformedFile, match=message) as caught:
        open_model(save(make_gguf(tensors=tensors, data=bytes(128))))
    assert "model.gguf" in str(caught.value)


KEYS = {
    "a key comes twice": ([("k", U8, b"\1"), ("k", U8, b"\1")], "'k' a second time"),
    "a key could steer a terminal": ([("a\x1b[2J", U8, b"\1")], r"has the unprintable name 'a\\x1b\[2J'"),
    "a key is empty": ([("", U8, b"\1")], "key 0 has no name"),
    "a boolean is 2": ([("k", BOOL, b"\2")], "is 2, a boolean is 0 or 1"),
    "a value type is unknown": ([("k", 13, b"\0" * 8)], "value type 13"),
    "an element type is unknown": ([("k", ARRAY, array(99, 1, b"\0" * 8))], "elements of type 99"),
    "a string needs terabytes": ([("k", STRING, struct.pack("<Q", 1 << 42))], "takes 4398046511104 bytes"),
    "a string length is maximal": ([("k", STRING, struct.pack("<Q", (1 << 64) - 1))], "takes 18446744073709551615 bytes"),
    "an array needs terabytes": ([("k", ARRAY, array(12, 1 << 40))], "is 1099511627776, at least 8796093022208 bytes"),
    "an array of strings is short": ([("k", ARRAY, array(STRING, 2, text(b"ab") + struct.pack("<Q", 1 << 60)))], "string 1"),
    "a string is not UTF-8": ([("k", STRING, text(b"a\xff"))], "not UTF-8: invalid start byte at its byte 1"),
    "arrays nest too deep": ([("k", ARRAY, nested(30))], "more than 8 deep"),
    "alignment is no power of two": ([("general.alignment", U32, u32(48))], "48; it must be a power of two"),
    "alignment is zero": ([("general.alignment", U32, u32(0))], "0; it must be a power of two"),
    "alignment is text": ([("general.alignment", STRING, text(b"32"))], "'32'; it must be a power of two"),
}  # fmt: skip


@pytest.mark.parametrize("case", KEYS)
def test_broken_metadata_is_refused_when(case, make_gguf, save):
    keys, message = KEYS[case]
    with pytest.raises(MalformedFile, match=message):
        open_model(save(make_gguf(keys, data=bytes(64))))


def test_array_elements_are_checked_when_they_are_used(make_gguf, save):
    keys = [
        ("bools", ARRAY, array(BOOL, 3, b"\0\1\7")),
        ("strings", ARRAY, array(STRING, 2, text(b"ok") + text(b"\xc3"))),
        ("many", ARRAY, array(STRING, 2000, text(b"x") * 1999 + text(b"\xc3"))),
    ]
    metadata = open_model(save(make_gguf(keys))).metadata
    with pytest.raises(MalformedFile, match=r"element 2 is 7, a boolean is 0 or 1"):
        metadata["bools"].tolist()
    with pytest.raises(MalformedFile, match=r"key 'strings': string 1 is not UTF-8"):
        metadata["strings"].tolist()
    with pytest.raises(MalformedFile, match=r"key 'many': string 1999 is not UTF-8"):
        metadata["many"].tolist()
    assert metadata["strings"].raw() == [b"ok", b"\xc3"]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"num_tensors": 1 << 40}, "number of tensors is 1099511627776"),
        ({"num_keys": (1 << 64) - 1}, "number of keys is 18446744073709551615"),
        ({"num_keys": 1}, "the length of the name of key 0 takes 8 bytes|name of key 0|key 0 has no name"),
    ],
)
def test_counts_that_the_file_cannot_hold_are_refused(counts, message, make_gguf, save):
    with pytest.raises(MalformedFile, match=message):
        open_model(save(make_gguf(data=bytes(32), **counts)))


@pytest.mark.parametrize(
    ("version", "error", "message"),
    [
        (1, Unsupported, "GGUF version 1 is not supported; versions 2 and 3 are"),
        (4, Unsupported, "GGUF version 4 is newer"),
        (0, MalformedFile, "version 0 does not exist"),
        (0x01020304, MalformedFile, "version 16909060 does not exist"),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_other_versions_are_refused_by_name(version, error, message, order, make_gguf, save):
    with pytest.raises(error, match=message if version < 5 or order == "<" else "does not exist"):
        open_model(save(make_gguf(version=version, order=order)))


@pytest.mark.parametrize(
    ("ggml_type", "message"),
    [(4, "Q4_2 .type 4. was removed"), (15, "Q8_K"), (31, "Q4_0_4_4"), (999, "type 999 is not known")],
)
def test_an_unknown_tensor_type_is_refused_with_what_is_supported(ggml_type, message, make_gguf, save):
    with pytest.raises(Unsupported, match=f"tensor 'blk.0.w' cannot be read: .*{message}.*use a file with .*q4_k"):
        open_model(save(make_gguf(tensors=[("blk.0.w", (32,), ggml_type, 0)], data=bytes(64))))


SEEMS = {
    "nothing": (b"", MalformedFile, "an empty file"),
    "a web page": (b"<!DOCTYPE html><html>", MalformedFile, "a web page.*download it again"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid", MalformedFile, "Git LFS.*git lfs pull"),
    "a torch zip": (b"PK\x03\x04" + bytes(60), Unsupported, "PyTorch pickle.*convert it to safetensors"),
    "a pickle": (b"\x80\x02" + bytes(60), Unsupported, "PyTorch pickle.*convert it to safetensors"),
    "a safetensors file": (struct.pack("<Q", 2) + b"{}", MalformedFile, "a safetensors file.*suffix .safetensors"),
    "an old GGML file": (b"tjgg" + bytes(60), Unsupported, "GGJT file, the predecessor of GGUF"),
    "zeros": (bytes(600), MalformedFile, "zeros"),
    "noise": (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", MalformedFile, "begins with 01 02 03 04 05 06 07 08"),
}


@pytest.mark.parametrize("case", SEEMS)
def test_a_file_without_the_magic_is_named_for_what_it_seems_to_be(case, save):
    content, error, message = SEEMS[case]
    with pytest.raises(error, match=message):
        open_model(save(content))


def test_a_truncated_file_states_both_sizes(make_gguf, save):
    whole = make_gguf(tensors=[("a", (16,), F32, 0)], data=bytes(64))
    with pytest.raises(
        MalformedFile, match=f"ends at byte {len(whole)}, the file has {len(whole) - 10} bytes; 10 are missing"
    ):
        open_model(save(whole[:-10]))
    with pytest.raises(MalformedFile, match=r"12 bytes, a GGUF header takes at least 24"):
        open_model(save(whole[:12]))


def test_every_truncation_is_refused(make_gguf, save):
    whole = make_gguf([("k", STRING, text(b"value"))], [("a", (16,), F32, 0)], bytes(64))
    for length in range(len(whole)):
        with pytest.raises(MalformedFile):
            open_model(save(whole[:length]))


def test_a_path_that_is_no_model_is_an_invalid_argument(tmp_path):
    with pytest.raises(InvalidArgument, match=r"nowhere.gguf' cannot be opened: No such file"):
        open_model(tmp_path / "nowhere.gguf")
    with pytest.raises(InvalidArgument, match=r"no config.json"):
        open_model(tmp_path)
    with pytest.raises(InvalidArgument, match=r"embedded null byte"):
        open_model("a\0b")
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(InvalidArgument, match=r"neither a file nor a directory"):
        open_model(tmp_path / "pipe.gguf")


def test_a_huge_file_is_refused_at_once(make_gguf, save):
    path = save(make_gguf(tensors=[("a", (1 << 30,), F32, 0), ("b", (32,), 4, 1 << 32)]))
    os.truncate(path, 1 << 40)  # sparse: one tebibyte that takes no room
    start = time.process_time()
    with pytest.raises(Unsupported, match=r"Q4_2"):
        open_model(path)
    assert time.process_time() - start < 1.0


def test_arrays_that_only_a_huge_file_could_hold_are_refused(make_gguf, save):
    for kind in (U8, STRING, ARRAY):
        path = save(make_gguf([("k", ARRAY, array(kind, 1 << 30))]))
        os.truncate(path, 1 << 40)
        with pytest.raises(MalformedFile, match=r"1073741824 elements; a file's arrays may hold 16777216"):
            open_model(path)


def test_a_nan_weight_is_found_and_named(make_gguf, save):
    values = [1.0] * 10 + [float("nan")] + [1.0] * 5
    block = struct.pack("<e", float("inf")) + bytes(32)
    path = save(make_gguf(tensors=[("a", (4, 4), F32, 0)], data=struct.pack("<16f", *values)))
    with pytest.raises(NumericFault, match=r"tensor 'a' \(f32\[4, 4\]\) holds nan at \[2, 2\]"):
        open_model(path).check_tensors()
    path = save(make_gguf(tensors=[("q", (32, 2), Q8_0, 0)], data=bytes(34) + block), "q.gguf")
    with pytest.raises(NumericFault, match=r"tensor 'q' \(q8_0\[2, 32\]\) holds nan at \[1, 0\]"):
        open_model(path).check_tensors()


def test_finite_tensors_pass_with_progress_to_the_last_byte(make_gguf, save):
    path = save(make_gguf(tensors=[("a", (8,), F32, 0), ("i", (4,), 26, 32), ("s", (), F32, 64)], data=bytes(96)))
    seen = []
    open_model(path).check_tensors(lambda done, total: seen.append((done, total)))
    assert seen == [(32, 52), (48, 52), (52, 52)]


def test_an_unknown_tensor_name_gets_its_nearest_ones(make_gguf, save):
    model = open_model(save(make_gguf(tensors=[("blk.0.attn_q.weight", (8,), F32, 0)], data=bytes(32))))
    with pytest.raises(InvalidArgument, match=r"nearest names: blk.0.attn_q.weight"):
        model.data("blk.0.attn_k.weight")
    model.close()
    with pytest.raises(InvalidArgument, match=r"is closed"):
        model.data("blk.0.attn_q.weight")
