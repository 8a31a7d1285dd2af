"""Big-endian tensor data becomes little-endian, as the gguf package's converter does it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from gguf.scripts.gguf_convert_endian import byteswap_tensors

from runtime.dtypes import FORMATS, Format, byteswap
from runtime.dtypes.byteorder import _WORDS
from runtime.errors import InvalidArgument, Unsupported

every_format = pytest.mark.parametrize("fmt", list(FORMATS), ids=lambda fmt: fmt.name)


def some_bytes(fmt: Format, num_blocks: int = 3) -> bytes:
    return np.random.default_rng(9).integers(0, 256, num_blocks * fmt.block_bytes, dtype=np.uint8).tobytes()


@every_format
def test_swapping_twice_gives_the_data_back(fmt: Format) -> None:
    data = some_bytes(fmt)
    assert byteswap(fmt, byteswap(fmt, memoryview(data))) == data
    assert byteswap(fmt, b"") == b""


@every_format
def test_every_format_has_a_byte_order(fmt: Format) -> None:
    covered = [0] * fmt.block_bytes
    for start, width, count in _WORDS.get(fmt.name, ()):
        for byte in range(start, start + width * count):
            covered[byte] += 1
    assert max(covered) <= 1
    assert fmt.is_quantized == (fmt.name in _WORDS)


@pytest.mark.parametrize("ggml_type", list(byteswap_tensors), ids=lambda t: t.name)
def test_blocks_are_swapped_like_gguf_does(ggml_type: int) -> None:
    fmt = FORMATS.from_ggml_type(int(ggml_type))
    assert fmt is not None
    data = some_bytes(fmt)
    expected = np.frombuffer(data, np.uint8).copy()
    for block in range(3):
        byteswap_tensors[ggml_type](SimpleNamespace(data=expected), block * fmt.block_bytes)
    assert byteswap(fmt, data) == expected.tobytes()


@pytest.mark.parametrize(
    ("name", "data", "swapped"),
    [
        ("f32", "0102030405060708", "0403020108070605"),
        ("bf16", "01020304", "02010403"),
        ("i64", "0102030405060708", "0807060504030201"),
        ("u8", "0102", "0102"),
        ("f8_e4m3", "0102", "0102"),
        ("q5_0", "0102" + "03040506" + "aabb" * 8, "0201" + "06050403" + "aabb" * 8),
        ("iq4_xs", "0102" + "0304" + "05060708" + "aabb" * 64, "0201" + "0403" + "05060708" + "aabb" * 64),
    ],
)
def test_these_bytes_become_those(name: str, data: str, swapped: str) -> None:
    assert byteswap(FORMATS[name], bytes.fromhex(data)).hex() == swapped


def test_a_partial_block_is_refused() -> None:
    with pytest.raises(
        InvalidArgument, match="19 bytes cannot be byte-swapped as q4_0: they are no whole number of blocks of 18"
    ):
        byteswap(FORMATS["q4_0"], bytes(19))


def test_a_block_format_of_unknown_layout_is_refused() -> None:
    fmt = Format("vendor::q", "block", 32, 18, FORMATS["q4_0"].decode_blocks)
    with pytest.raises(Unsupported, match="vendor::q blocks cannot be swapped"):
        byteswap(fmt, bytes(18))
