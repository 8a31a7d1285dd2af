"""Plain formats, 8-bit floats, and the names that other people's files use."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from runtime.dtypes import (
    BOOL,
    F8_E4M3,
    F8_E5M2,
    FORMATS,
    U16,
    U32,
    U64,
    describe_ggml_type,
    from_safetensors_dtype,
    to_safetensors_dtype,
)


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (0x00, 0.0),
        (0x01, 2.0**-9),
        (0x07, 7 * 2.0**-9),
        (0x08, 2.0**-6),
        (0x38, 1.0),
        (0x3C, 1.5),
        (0x7E, 448.0),
        (0xFE, -448.0),
    ],
)
def test_f8_e4m3_values(code: int, value: float) -> None:
    assert F8_E4M3.decode(bytes([code]), (1,)).tolist() == [value]


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (0x01, 2.0**-16),
        (0x04, 2.0**-14),
        (0x3C, 1.0),
        (0x3E, 1.5),
        (0x7B, 57344.0),
        (0x7C, math.inf),
        (0xFC, -math.inf),
    ],
)
def test_f8_e5m2_values(code: int, value: float) -> None:
    assert F8_E5M2.decode(bytes([code]), (1,)).tolist() == [value]


def test_not_a_number_and_negative_zero_of_the_8_bit_floats() -> None:
    assert np.nonzero(np.isnan(F8_E4M3.decode(bytes(range(256)), (256,))))[0].tolist() == [0x7F, 0xFF]
    assert np.nonzero(np.isnan(F8_E5M2.decode(bytes(range(256)), (256,))))[0].tolist() == [125, 126, 127, 253, 254, 255]
    for fmt in (F8_E4M3, F8_E5M2):
        assert math.copysign(1, fmt.decode(b"\x80", ()).item()) == -1
        assert fmt.decode(bytes(6), (2, 3)).dtype == np.float32


def test_unsigned_integers_and_booleans() -> None:
    assert U16.decode(b"\xff\xff\x01\x02", (2,)).tolist() == [65535, 513]
    assert U32.decode(b"\xff\xff\xff\xff", (1,)).tolist() == [2**32 - 1]
    assert U64.decode(b"\xfe" + b"\xff" * 7, (1,)).tolist() == [2**64 - 2]
    flags = BOOL.decode(b"\x00\x01\x02", (3,))
    assert flags.dtype == np.bool_
    assert flags.tolist() == [False, True, True]


def test_every_plain_float_decodes_one_and_a_half() -> None:
    assert FORMATS["f64"].decode(struct.pack("<d", 1.5), (1,)).tolist() == [1.5]
    assert FORMATS["f32"].decode(struct.pack("<f", 1.5), (1,)).tolist() == [1.5]
    assert FORMATS["f16"].decode(struct.pack("<e", 1.5), (1,)).tolist() == [1.5]
    assert FORMATS["bf16"].decode(b"\xc0\x3f", (1,)).tolist() == [1.5]


def test_safetensors_names_lead_to_formats_and_back() -> None:
    names = [
        "F64",
        "F32",
        "F16",
        "BF16",
        "I64",
        "I32",
        "I16",
        "I8",
        "U64",
        "U32",
        "U16",
        "U8",
        "BOOL",
        "F8_E4M3",
        "F8_E5M2",
    ]
    for name in names:
        fmt = from_safetensors_dtype(name)
        assert fmt is not None
        assert (fmt.name, to_safetensors_dtype(fmt)) == (name.lower(), name)
    assert {to_safetensors_dtype(fmt) for fmt in FORMATS} == {*names, None}


@pytest.mark.parametrize("name", ["F4", "F8_E8M0", "F8_E4M3FNUZ", "C64", "f32", ""])
def test_safetensors_names_that_no_format_has_lead_nowhere(name: str) -> None:
    assert from_safetensors_dtype(name) is None


@pytest.mark.parametrize(
    ("ggml_type", "text"),
    [
        (12, "type 12 is q4_k"),
        (4, "Q4_2 (type 4) was removed from GGML in 2023"),
        (5, "Q4_3 (type 5) was removed from GGML in 2023"),
        (9, "Q8_1 (type 9) is an activation format, never stored in files"),
        (15, "Q8_K (type 15) is an activation format, never stored in files"),
        (31, "Q4_0_4_4 (type 31) was removed from GGUF files in 2024: q4_0 is repacked at load time instead"),
        (41, "Q1_0 (type 41) is a 1-bit format of llama.cpp that this runtime does not decode"),
        (99, "type 99 is not known"),
        (-1, "type -1 is not known"),
    ],
)
def test_a_ggml_type_is_described_in_words(ggml_type: int, text: str) -> None:
    assert describe_ggml_type(ggml_type) == text


@pytest.mark.parametrize("ggml_type", [4, 5, 31, 32, 33, 36, 37, 38])
def test_a_removed_ggml_type_is_called_removed(ggml_type: int) -> None:
    assert f"(type {ggml_type}) was removed" in describe_ggml_type(ggml_type)


def test_every_type_that_gguf_names_is_known() -> None:
    unknown = [t.name for t in GGMLQuantizationType if "not known" in describe_ggml_type(t.value)]
    assert unknown == []


@pytest.mark.oracle
def test_8_bit_floats_decode_as_in_torch() -> None:
    import torch

    codes = torch.arange(256, dtype=torch.uint8)
    for fmt, dtype in ((F8_E4M3, torch.float8_e4m3fn), (F8_E5M2, torch.float8_e5m2)):
        np.testing.assert_array_equal(fmt.decode(bytes(range(256)), (256,)), codes.view(dtype).float().numpy())
