"""Every block format decodes to the very bits that the gguf package decodes to."""

from __future__ import annotations

import subprocess
import sys

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from runtime.dtypes import FORMATS, Format
from runtime.dtypes.blocks import BLOCKS, CHUNK_ELEMENTS
from runtime.dtypes.byteorder import _WORDS
from runtime.errors import InvalidArgument

# float16: zeros, smallest and largest subnormal, smallest normal, largest, infinities, quiet and signalling NaN
SPECIAL_SCALES = (
    0x0000,
    0x8000,
    0x0001,
    0x83FF,
    0x0400,
    0x7BFF,
    0xFBFF,
    0x7C00,
    0xFC00,
    0x7E00,
    0xFE01,
    0x7D55,
    0x3C00,
)

every_block_format = pytest.mark.parametrize("fmt", BLOCKS, ids=lambda fmt: fmt.name)


def decoded_by_gguf(fmt: Format, blocks: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return quants.dequantize(blocks, GGMLQuantizationType(fmt.ggml_type))


def assert_same_bits(fmt: Format, blocks: np.ndarray) -> None:
    actual = fmt.decode_blocks(blocks)
    assert actual.dtype == np.float32
    assert actual.shape == (len(blocks), fmt.group_size)
    np.testing.assert_array_equal(actual.view(np.uint32), decoded_by_gguf(fmt, blocks).view(np.uint32))


@every_block_format
def test_random_bytes_decode_to_the_bits_of_gguf(fmt: Format) -> None:
    # random bytes reach every code, infinite and NaN scales; the count crosses a border between chunks
    num_blocks = CHUNK_ELEMENTS // fmt.group_size + 7
    blocks = np.random.default_rng(fmt.ggml_type).integers(0, 256, (num_blocks, fmt.block_bytes), dtype=np.uint8)
    assert_same_bits(fmt, blocks)


@every_block_format
def test_special_scales_decode_to_the_bits_of_gguf(fmt: Format) -> None:
    rng = np.random.default_rng(1)
    payloads = [np.full(fmt.block_bytes, fill, np.uint8) for fill in (0x00, 0xFF, 0x88, 0x77, 0x0F)]
    payloads.append(rng.integers(0, 256, fmt.block_bytes, dtype=np.uint8))
    blocks = []
    for payload in payloads:
        for first in SPECIAL_SCALES:
            for second in SPECIAL_SCALES:
                block = payload.copy()
                places = [start + 2 * i for start, width, count in _WORDS[fmt.name] if width == 2 for i in range(count)]
                for place, value in zip(places[:2], (first, second)):
                    block[place : place + 2] = (value & 255, value >> 8)
                blocks.append(block)
    assert_same_bits(fmt, np.array(blocks))


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_every_scale_byte_of_a_microscaling_format_decodes_to_the_bits_of_gguf(name: str) -> None:
    fmt = FORMATS[name]
    blocks = np.random.default_rng(2).integers(0, 256, (256, fmt.block_bytes), dtype=np.uint8)
    blocks[:, : 1 if name == "mxfp4" else 4] = np.arange(256, dtype=np.uint8)[:, None]
    assert_same_bits(fmt, blocks)


def test_every_scale_byte_of_iq1_m_and_every_spread_of_its_f16_decodes_to_the_bits_of_gguf() -> None:
    fmt = FORMATS["iq1_m"]
    blocks = np.random.default_rng(3).integers(0, 256, (len(SPECIAL_SCALES), fmt.block_bytes), dtype=np.uint8)
    for block, scale in zip(blocks, SPECIAL_SCALES):
        for word in range(4):
            block[49 + 2 * word] = block[49 + 2 * word] & 0x0F | (scale >> (4 * word) & 15) << 4
    assert_same_bits(fmt, blocks)


@every_block_format
def test_a_strided_view_decodes_like_its_copy(fmt: Format) -> None:
    wide = np.random.default_rng(4).integers(0, 256, (6, fmt.block_bytes + 5), dtype=np.uint8)
    view = wide[::2, 3 : 3 + fmt.block_bytes]
    np.testing.assert_array_equal(
        fmt.decode_blocks(view).view(np.uint32), fmt.decode_blocks(np.ascontiguousarray(view)).view(np.uint32)
    )


@every_block_format
def test_no_blocks_decode_to_no_elements(fmt: Format) -> None:
    assert fmt.decode(b"", (0, fmt.group_size)).shape == (0, fmt.group_size)


@every_block_format
def test_a_partial_block_is_refused_with_the_group_size(fmt: Format) -> None:
    with pytest.raises(InvalidArgument, match=f"stores {fmt.group_size} elements per block"):
        fmt.nbytes((fmt.group_size + 1,))
    with pytest.raises(InvalidArgument, match=f"takes {fmt.block_bytes} bytes, {fmt.block_bytes - 1} were given"):
        fmt.decode(bytes(fmt.block_bytes - 1), (fmt.group_size,))


def can_gguf_decode(ggml_type: GGMLQuantizationType) -> bool:
    try:
        quants.dequantize(np.zeros(GGML_QUANT_SIZES[ggml_type][1], np.uint8), ggml_type)
    except NotImplementedError:
        return False
    return True


def test_every_type_that_gguf_can_decode_is_a_format() -> None:
    decodable = {t.name.lower() for t in GGMLQuantizationType if can_gguf_decode(t)}
    assert len(decodable) >= 26
    assert decodable - {fmt.name for fmt in FORMATS} == set()


def test_ids_and_geometry_are_those_of_gguf() -> None:
    of_gguf = {t.value: (t.name.lower(), *sizes) for t, sizes in GGML_QUANT_SIZES.items()}
    for fmt in FORMATS:
        if fmt.ggml_type is not None:
            assert (fmt.name, fmt.group_size, fmt.block_bytes) == of_gguf[fmt.ggml_type]


@pytest.mark.parametrize("name", ["iq1_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"])
def test_every_row_of_a_codebook_is_that_of_gguf(name: str) -> None:
    from runtime.dtypes import grids

    table = getattr(gguf.quants, name.upper())
    table.init_grid()
    np.testing.assert_array_equal(grids.rows(name).view(np.int8).reshape(table.grid_shape), table.grid[0, 0])


def test_q4_0_by_hand() -> None:
    # d = 0.5; byte i holds element i (low) and element i + 16 (high)
    data = bytes([0x00, 0x38, 0xF0]) + bytes([0x88] * 15)
    assert FORMATS["q4_0"].decode(data, (32,)).tolist() == [-4.0] + [0.0] * 15 + [3.5] + [0.0] * 15


def test_mxfp4_by_hand() -> None:
    # scale byte 128 is 2; codes 0 ... 15 low, zero high
    values = FORMATS["mxfp4"].decode(bytes([128, *range(16)]), (32,)).tolist()
    assert values[:8] == [0, 1, 2, 3, 4, 6, 8, 12]
    assert values[8:16] == [0, -1, -2, -3, -4, -6, -8, -12]
    assert values[16:] == [0] * 16


def test_tq2_0_by_hand() -> None:
    # byte 0 holds elements 0, 32, 64, 96, two bits each: 0, 1, 2, 1; d = 2
    data = bytes([0b01_10_01_00]) + bytes([0b01010101] * 63) + bytes([0x00, 0x40])
    values = FORMATS["tq2_0"].decode(data, (256,))
    assert {int(i): float(values[i]) for i in np.nonzero(values)[0]} == {0: -2.0, 64: 2.0}


def test_importing_the_formats_does_not_import_numpy_or_gguf() -> None:
    code = "import sys, runtime.dtypes; print([m for m in ('numpy', 'gguf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
