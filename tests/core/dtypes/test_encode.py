"""Encoding: plain formats to nearest even, block formats as the gguf package does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from runtime.dtypes import FORMATS, Format, can_encode, encode
from runtime.errors import InvalidArgument, Unsupported

BLOCK_NAMES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4")
FLOAT_NAMES = ("f32", "f16", "bf16", "f8_e4m3", "f8_e5m2")
every_block_encoder = pytest.mark.parametrize("name", BLOCK_NAMES)


def can_gguf_encode(fmt: Format) -> bool:
    try:
        quants.quantize(np.zeros((1, 256), np.float32), GGMLQuantizationType(fmt.ggml_type))
    except NotImplementedError:
        return False
    return True


def test_every_plain_format_and_whatever_gguf_can_encode_can_be_encoded() -> None:
    for fmt in FORMATS:
        can = not fmt.is_quantized or fmt.name == "f8_e4m3_g128" or can_gguf_encode(fmt)
        assert can_encode(fmt) == can, fmt.name


def test_groups_of_8_bit_floats_keep_three_bits_under_the_scale_of_their_largest() -> None:
    fmt = FORMATS["f8_e4m3_g128"]
    values = np.random.default_rng(8).standard_normal((3, 256)).astype(np.float32)
    values[1, :128], values[2, :128] = 0, values[2, :128] * np.float32(1e-41)
    data = encode(fmt, values)
    assert len(data) == 6 * 132
    scale = np.frombuffer(data[:4], "<f4")[0]
    assert scale == np.abs(values[0, :128]).max() / np.float32(448)
    decoded = fmt.decode(data, values.shape)
    error = np.abs(decoded - values).reshape(-1, 128)
    assert (error <= np.maximum(2.0**-4 * np.abs(values).reshape(-1, 128), 2.0**-9 * 448 * scale)).all()
    with pytest.raises(InvalidArgument, match="not finite cannot be encoded as f8_e4m3_g128"):
        encode(fmt, np.full((1, 128), np.inf))


@every_block_encoder
def test_block_formats_are_encoded_like_gguf(name: str) -> None:
    values = np.random.default_rng(5).standard_normal((3, 5, 512)).astype(np.float32)
    values[0, 0] = 0
    values[1, 1] *= np.float32(1e-40)
    with np.errstate(all="ignore"):
        expected = quants.quantize(values, GGMLQuantizationType[name.upper()]).tobytes()
    data = encode(FORMATS[name], values)
    assert data == expected
    assert len(data) == FORMATS[name].nbytes(values.shape)


@every_block_encoder
def test_blocks_come_back_close(name: str) -> None:
    values = np.random.default_rng(6).uniform(-1, 1, (4, 256)).astype(np.float32)
    back = FORMATS[name].decode(encode(FORMATS[name], values), values.shape)
    worst = {"q8_0": 0.005, "q5_0": 0.07, "q5_1": 0.04, "q4_0": 0.14, "q4_1": 0.08, "mxfp4": 0.3}.get(name, 0.51)
    assert np.abs(back - values).max() < worst


@every_block_encoder
def test_no_rows_encode_to_no_bytes(name: str) -> None:
    assert encode(FORMATS[name], np.zeros((0, 256), np.float32)) == b""


@every_block_encoder
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_blocks_of_infinite_values_are_refused(name: str, bad: float) -> None:
    values = np.zeros(256, np.float32)
    values[200] = bad
    with pytest.raises(InvalidArgument, match="must be finite"):
        encode(FORMATS[name], values)


def test_a_scale_that_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"values up to 1000000\.0 cannot be encoded as q8_0"):
        encode(FORMATS["q8_0"], np.full(32, 1e6, np.float32))


@pytest.mark.parametrize("shape", [(31,), (), (32, 1)])
def test_a_row_of_partial_blocks_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="q4_0"):
        encode(FORMATS["q4_0"], np.zeros(shape, np.float32))


def test_a_format_without_encoder_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(Unsupported, match=r"q4_k cannot be encoded here; formats that can: .*bf16.*q4_0.*mxfp4"):
        encode(FORMATS["q4_k"], np.zeros(256, np.float32))


def test_complex_values_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="must be real numbers"):
        encode(FORMATS["f32"], np.zeros(4, np.complex64))


@pytest.mark.parametrize("name", ["f16", "bf16", "f8_e4m3", "f8_e5m2"])
def test_every_code_of_a_float_comes_back(name: str) -> None:
    fmt = FORMATS[name]
    codes = np.arange(256 if fmt.block_bytes == 1 else 65536).astype(f"<u{fmt.block_bytes}")
    values = fmt.decode(codes.tobytes(), codes.shape)
    back = np.frombuffer(encode(fmt, values), codes.dtype)
    is_number = ~np.isnan(values)
    np.testing.assert_array_equal(back[is_number], codes[is_number])
    assert np.isnan(fmt.decode(back[~is_number].tobytes(), ((~is_number).sum(),))).all()


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("bf16", 1.00390625, "803f"),  # halfway between 0x3f80 and 0x3f81: even
        ("bf16", 1.01171875, "823f"),  # halfway between 0x3f81 and 0x3f82
        ("bf16", 3.4e38, "807f"),
        ("f16", 65520.0, "007c"),
        ("f16", 65519.0, "ff7b"),
        ("f8_e4m3", 1.0625, "38"),
        ("f8_e4m3", 1.1875, "3a"),
        ("f8_e4m3", 1000.0, "7e"),
        ("f8_e4m3", -math.inf, "fe"),
        ("f8_e5m2", 61439.0, "7b"),
        ("f8_e5m2", 61440.0, "7c"),
        ("f8_e5m2", -0.0, "80"),
        ("i8", -2.5, "fe"),
        ("i8", 126.6, "7f"),
        ("u16", 65535.0, "ffff"),
        ("bool", 0.5, "01"),
    ],
)
def test_a_value_becomes_these_bytes(name: str, value: float, code: str) -> None:
    assert encode(FORMATS[name], np.array([value], np.float32)).hex() == code


def test_float64_is_rounded_once_to_bf16() -> None:
    # just above a tie: through float32 it would become the tie and round down
    assert encode(FORMATS["bf16"], np.array([1.00390625 + 2.0**-40])).hex() == "813f"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("i8", 128.0),
        ("u8", -1.0),
        ("i32", 2.0**31),
        ("i64", 2.0**63),
        ("u64", 2.0**64),
        ("i16", math.nan),
        ("i32", math.inf),
    ],
)
def test_a_value_outside_the_range_of_an_integer_format_is_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidArgument, match=f"cannot be encoded as {name}: its range is"):
        encode(FORMATS[name], np.array([0.0, value]))


def test_integers_are_kept_exactly() -> None:
    values = np.array([-(2**63), 2**63 - 1])
    assert np.frombuffer(encode(FORMATS["i64"], values), "<i8").tolist() == values.tolist()


@pytest.mark.oracle
def test_floats_are_encoded_as_in_torch() -> None:
    import torch

    bits = np.random.default_rng(7).integers(0, 2**32, 200_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = np.concatenate([values, np.random.default_rng(8).standard_normal(100_000).astype(np.float32) * 100])
    values = values[~np.isnan(values)]
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    for name, dtype in zip(FLOAT_NAMES, dtypes):
        assert encode(FORMATS[name], values) == torch.from_numpy(values).to(dtype).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
def test_the_type_of_the_values_does_not_matter(dtype: str) -> None:
    values = np.array([[1.5, -2.0], [0.25, 3.0]], dtype)
    for name in FLOAT_NAMES:
        np.testing.assert_array_equal(FORMATS[name].decode(encode(FORMATS[name], values), (2, 2)), values.astype("f4"))
    assert encode(FORMATS["bf16"], values.T) == encode(FORMATS["bf16"], np.ascontiguousarray(values.T))
