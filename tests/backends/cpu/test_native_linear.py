"""The native linears of every format and instruction set against float64 products of independently rounded factors."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.dtypes import FORMATS, Format

sys.path.insert(0, str(Path(__file__).parent))
from native_library import NativeLinear, build

QUANTISED = [
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "q2_k",
    "q3_k",
    "q4_k",
    "q5_k",
    "q6_k",
    "iq4_nl",
    "iq4_xs",
    "mxfp4",
]
PLAIN = ["f32", "f16", "bf16"]
ROWS = (1, 2, 3, 5, 6, 7, 13, 40)
# byte offsets of the float16 scales in a block
HALVES = {
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "iq4_nl": (0,),
    "iq4_xs": (0,),
    "mxfp4": (),
}

pytestmark = pytest.mark.timeout(900)  # the first test waits for the compiler
every_format = pytest.mark.parametrize("name", [*QUANTISED, *PLAIN])
every_quantised_format = pytest.mark.parametrize("name", QUANTISED)


@pytest.fixture(scope="session")
def native() -> NativeLinear:
    return NativeLinear(build())


def ggml_type(fmt: Format) -> int:
    assert fmt.ggml_type is not None
    return fmt.ggml_type


def random_weight(fmt: Format, n: int, k: int, *, seed: int = 0, extreme: bool = False) -> NDArray[np.uint8]:
    """Blocks that reach every code; scales are ordinary, or the largest, smallest and subnormal ones."""
    rng = np.random.default_rng(seed)
    if not fmt.is_quantized:
        values = (rng.standard_normal((n, k)) * 2.0 ** rng.integers(-8, 8, (n, k))).astype(np.float32)
        if fmt.name == "f16":
            return values.astype(np.float16).view(np.uint8).reshape(-1)
        bits = values.view(np.uint32)
        return bits.view(np.uint8).reshape(-1) if fmt.name == "f32" else (bits >> 16).astype(np.uint16).view(np.uint8)
    blocks = rng.integers(0, 256, (n * k // fmt.group_size, fmt.block_bytes), dtype=np.uint8)
    for place in HALVES[fmt.name]:
        scales = (rng.standard_normal(len(blocks)) * 0.01).astype(np.float16)
        if extreme:
            scales = rng.choice(np.array([65504, -65504, 6e-8, -6e-8, 6.1e-5, 0, -0.0, 1], np.float16), len(blocks))
        blocks[:, place : place + 2] = scales[:, None].view(np.uint8)
    if fmt.name == "mxfp4":
        blocks[:, 0] = rng.choice([0, 1, 2, 127, 200], len(blocks)) if extreme else rng.integers(110, 130, len(blocks))
    return blocks.reshape(-1)


def random_activations(rows: int, k: int, seed: int = 1) -> NDArray[np.float32]:
    """Heavy tails, a row of zeros in the middle, magnitudes apart by powers of ten."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_t(3, (rows, k)) * 10.0 ** rng.integers(-3, 4, (rows, 1))).astype(np.float32)
    x[rows // 2, : k // 2] = 0
    return x


def as_the_kernels_see(fmt: Format, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Activations rounded as documented: int8 with a scale per 32, bfloat16, or not at all."""
    if fmt.is_quantized:
        groups = x.reshape(len(x), -1, 32)
        most = np.abs(groups).max(axis=2, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = np.where(most > 0, np.float32(127) / most, np.float32(0))
        q = np.rint(groups * inverse)
        seen: NDArray[np.float64] = (q.astype(np.float64) * (most / np.float32(127)).astype(np.float64)).reshape(
            x.shape
        )
        return seen
    if fmt.name == "bf16":
        bits = x.view(np.uint32).astype(np.uint64)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)
        widened: NDArray[np.float64] = rounded.view(np.float32).astype(np.float64)
        return widened
    return x.astype(np.float64)


def assert_close(fmt: Format, y: NDArray[np.float32], raw: NDArray[np.uint8], x: NDArray[np.float32]) -> None:
    """Within the error of summing in float32: a few units of rounding of the sum of magnitudes."""
    n, k = y.shape[1], x.shape[1]
    weight = fmt.decode(raw, (n, k)).astype(np.float64)
    seen = as_the_kernels_see(fmt, x)
    # an offset and its scaled code may cancel, so decoded weights understate the terms that were summed
    terms = np.abs(seen) @ np.abs(weight).T + np.abs(seen).sum(axis=1, keepdims=True) * np.abs(weight).max(axis=1)
    error = np.abs(y - seen @ weight.T)
    assert (error <= terms * 2.0**-22 + 1e-30).all(), f"{(error / (terms + 1e-300)).max():.3g}"


def k_of(fmt: Format, *, awkward: bool) -> int:
    if not fmt.is_quantized:
        return 333 if awkward else 600
    if fmt.group_size == 256:
        return 256 if awkward else 1280
    return 32 * 37 if awkward else 1088


@every_format
@pytest.mark.parametrize(("n", "awkward"), [(1, True), (15, False), (16, True), (33, True), (100, False)])
def test_a_linear_is_the_product_of_decoded_weights_and_rounded_activations(
    native: NativeLinear, name: str, n: int, awkward: bool
) -> None:
    fmt = FORMATS[name]
    k = k_of(fmt, awkward=awkward)
    raw, x = random_weight(fmt, n, k), random_activations(max(ROWS), k)
    for isa in native.isas:
        packed = native.pack(isa, ggml_type(fmt), raw, n, k)
        for rows in ROWS:
            y = native.linear(isa, ggml_type(fmt), packed, x[:rows].copy(), n)
            assert_close(fmt, y, raw, x[:rows])


@every_quantised_format
@pytest.mark.parametrize("extreme", [False, True], ids=["ordinary scales", "extreme scales"])
def test_every_instruction_set_gives_the_same_bits(native: NativeLinear, name: str, extreme: bool) -> None:
    fmt = FORMATS[name]
    n, k = 49, k_of(fmt, awkward=False)
    raw, x = random_weight(fmt, n, k, extreme=extreme), random_activations(40, k)
    expected = None
    for isa in native.isas:
        packed = native.pack(isa, ggml_type(fmt), raw, n, k)
        y = native.linear(isa, ggml_type(fmt), packed, x, n)
        assert np.isfinite(y).all()
        if expected is None:
            expected = y
            if not extreme:
                assert_close(fmt, y, raw, x)
        np.testing.assert_array_equal(y.view(np.uint32), expected.view(np.uint32), err_msg=isa)


@every_format
def test_a_row_gives_the_same_bits_alone_and_in_any_batch(native: NativeLinear, name: str) -> None:
    fmt = FORMATS[name]
    n, k = 40, k_of(fmt, awkward=True) if fmt.group_size < 256 else 1280
    raw, x = random_weight(fmt, n, k), random_activations(280, k)
    for isa in native.isas:
        packed = native.pack(isa, ggml_type(fmt), raw, n, k)
        # 280 rows are more than one block of rows, with a short last tile
        whole = native.linear(isa, ggml_type(fmt), packed, x, n, threads=2)
        for rows in (*ROWS, 12, 280):
            y = native.linear(isa, ggml_type(fmt), packed, x[-rows:].copy(), n)
            np.testing.assert_array_equal(y.view(np.uint32), whole[-rows:].view(np.uint32), err_msg=f"{isa} {rows}")


@every_format
def test_packing_gives_the_same_bytes_on_every_instruction_set_and_any_number_of_threads(
    native: NativeLinear, name: str
) -> None:
    fmt = FORMATS[name]
    n, k = 45, k_of(fmt, awkward=True)
    raw = random_weight(fmt, n, k)
    expected = native.pack("base", ggml_type(fmt), raw, n, k)
    for isa in native.isas:
        for threads in (1, 2):
            np.testing.assert_array_equal(native.pack(isa, ggml_type(fmt), raw, n, k, threads), expected, err_msg=isa)


@every_format
def test_packed_weights_take_the_room_of_the_file(native: NativeLinear, name: str) -> None:
    fmt = FORMATS[name]
    packed = native.packed_bytes("base", ggml_type(fmt), 64, 1024)
    assert packed == pytest.approx(fmt.nbytes((64, 1024)), rel=0.02)


def test_formats_and_sizes_without_kernels_are_answered_with_zero(native: NativeLinear) -> None:
    assert native.packed_bytes("base", 9, 16, 256) == 0
    assert native.packed_bytes("base", ggml_type(FORMATS["q4_k"]), 16, 128) == 0
    assert native.packed_bytes("base", ggml_type(FORMATS["q8_0"]), 16, 33) == 0


@pytest.mark.parametrize("rows", [1, 40])
def test_bias_and_residual_are_added_after_the_product(native: NativeLinear, rows: int) -> None:
    fmt = FORMATS["q8_0"]
    n, k = 37, 96
    raw, x = random_weight(fmt, n, k), random_activations(rows, k)
    rng = np.random.default_rng(2)
    bias = rng.standard_normal(n).astype(np.float32)
    residual = rng.standard_normal((rows, n)).astype(np.float32)
    for isa in native.isas:
        packed = native.pack(isa, ggml_type(fmt), raw, n, k)
        plain = native.linear(isa, ggml_type(fmt), packed, x, n)
        y = native.linear(isa, ggml_type(fmt), packed, x, n, bias=bias, residual=residual)
        np.testing.assert_array_equal(y, (plain + bias) + residual)


@pytest.mark.parametrize("rows", [5, 30])
def test_gathered_rows_are_weighted_and_added_where_they_are_scattered(native: NativeLinear, rows: int) -> None:
    fmt = FORMATS["q4_0"]
    n, k = 37, 96
    raw, x = random_weight(fmt, n, k), random_activations(50, k)
    rng = np.random.default_rng(3)
    gather, scatter = (rng.permutation(50)[:rows].astype(np.int32) for _ in range(2))
    weights = rng.standard_normal(rows).astype(np.float32)
    before = rng.standard_normal((50, n)).astype(np.float32)
    for isa in native.isas:
        packed = native.pack(isa, ggml_type(fmt), raw, n, k)
        expected = before.copy()
        expected[scatter] += native.linear(isa, ggml_type(fmt), packed, x[gather], n) * weights[:, None]
        y = before.copy()
        native.linear(
            *(isa, ggml_type(fmt), packed, x, n), gather=gather, scatter=scatter, row_weights=weights, into=y, threads=2
        )
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_activation_that_is_not_finite_shows_in_its_row_alone(native: NativeLinear, bad: float) -> None:
    fmt = FORMATS["q4_0"]
    n, k = 16, 64
    raw, x = random_weight(fmt, n, k), random_activations(7, k)
    x[3, 40] = bad
    for isa in native.isas:
        packed = native.pack(isa, ggml_type(fmt), raw, n, k)
        y = native.linear(isa, ggml_type(fmt), packed, x, n)
        assert np.isnan(y[3]).all()
        assert np.isfinite(np.delete(y, 3, axis=0)).all()


@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 1e-38, 1e-31, 1e36])
def test_activations_of_any_finite_magnitude_give_finite_sums(native: NativeLinear, magnitude: float) -> None:
    fmt = FORMATS["q8_0"]
    n, k = 16, 64
    raw = random_weight(fmt, n, k)
    x = np.full((2, k), magnitude, np.float32)
    for isa in native.isas:
        packed = native.pack(isa, ggml_type(fmt), raw, n, k)
        y = native.linear(isa, ggml_type(fmt), packed, x, n)
        expected = x.astype(np.float64) @ fmt.decode(raw, (n, k)).astype(np.float64).T
        np.testing.assert_allclose(y, expected, rtol=1e-2, atol=1e-29 + magnitude * 0.01)
