"""Encoding float values: plain formats here, block formats through the `gguf` package's quantisers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes.catalogue import FORMATS
from runtime.dtypes.float8 import e4m3_values, e5m2_values
from runtime.dtypes.format import Format
from runtime.dtypes.rounding import round_to
from runtime.errors import InvalidArgument, Unsupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

_BLOCK_ENCODERS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4")
"""What `gguf.quants.quantize` implements; the k-quants and grid formats have quantisers in llama.cpp only."""

_FLOATS = {"f64": "<f8", "f32": "<f4", "f16": "<f2"}
_INTEGERS = {
    "i8": "<i1",
    "i16": "<i2",
    "i32": "<i4",
    "i64": "<i8",
    "u8": "<u1",
    "u16": "<u2",
    "u32": "<u4",
    "u64": "<u8",
}
_PLAIN_ENCODERS = (*_FLOATS, "bf16", "f8_e4m3", "f8_e5m2", *_INTEGERS, "bool")

_LARGEST_F16 = 65504.0


def can_encode(fmt: Format) -> bool:
    """Whether `encode` supports `fmt`."""
    return fmt.name in _PLAIN_ENCODERS or fmt.name in _BLOCK_ENCODERS or fmt.name == "f8_e4m3_g128"


def encode(fmt: Format, values: ArrayLike) -> bytes:
    """Encode `values` (float32 or another real type, [..., K]) in `fmt`, little-endian, row-major.

    floats    round to nearest, ties to even; too large becomes infinity, and 448 in f8_e4m3 (as torch does)
    integers  round to nearest, ties to even; outside the range of `fmt`, or not finite, is InvalidArgument
    bool      everything but zero is true
    blocks    K a multiple of the group size, all finite, and within float16 where scales are float16, else
              InvalidArgument; the bytes are those of `gguf.quants.quantize`
    f8_e4m3_g128  all finite; a group's largest element becomes 448 times its scale

    Raises Unsupported for a format that has no encoder.
    """
    import numpy as np

    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise InvalidArgument(
            f"values of type {array.dtype} cannot be encoded as {fmt.name}: they must be real numbers"
        )
    if not can_encode(fmt):
        encodable = ", ".join(f.name for f in FORMATS if can_encode(f))
        raise Unsupported(f"{fmt.name} cannot be encoded here", remedy=f"formats that can: {encodable}")
    if fmt.name in _FLOATS:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return _bytes(array.astype(_FLOATS[fmt.name]))
    if fmt.name in _INTEGERS:
        return _encode_integers(fmt, array)
    if fmt.name == "bf16":
        return _encode_bf16(array)
    if fmt.name == "bool":
        return _bytes(array != 0)
    if fmt.name in _BLOCK_ENCODERS:
        return _encode_blocks(fmt, array)
    if fmt.name == "f8_e4m3_g128":
        return _encode_e4m3_groups(fmt, array)
    table = e4m3_values() if fmt.name == "f8_e4m3" else e5m2_values()
    return _encode_by_table(round_to(fmt.name, array), table)


def _bytes(array: NDArray[Any]) -> bytes:
    data: bytes = array.tobytes()
    return data


def _encode_integers(fmt: Format, array: NDArray[Any]) -> bytes:
    import numpy as np

    dtype = np.dtype(_INTEGERS[fmt.name])
    limits = np.iinfo(dtype)
    rounded = np.rint(array) if array.dtype.kind == "f" else array
    if array.size:
        low, high = rounded.min().item(), rounded.max().item()
        # Python compares integers and floats exactly, and NaN with nothing
        if not (limits.min <= low and high <= limits.max):
            raise InvalidArgument(
                f"values from {low} to {high} cannot be encoded as {fmt.name}: "
                f"its range is {limits.min} to {limits.max}, without NaN"
            )
    return _bytes(rounded.astype(dtype))


def _encode_bf16(array: NDArray[Any]) -> bytes:
    import numpy as np

    if array.dtype != np.float32:
        with np.errstate(invalid="ignore"):
            array = round_to("bf16", array).astype(np.float32)
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    # rounding could carry a NaN into infinity; it keeps its sign and upper bits and becomes quiet instead
    rounded = np.where(np.isnan(array), bits | np.uint32(0x400000), rounded)
    return _bytes((rounded >> 16).astype("<u2"))


def _encode_by_table(rounded: NDArray[np.float64], table: NDArray[np.float32]) -> bytes:
    """Codes of values that lie on the grid already; `table` [256] rises up to its first NaN, the sign is bit 7."""
    import numpy as np

    rising = table[: int(np.argmax(np.isnan(table)))]
    codes = np.searchsorted(rising, np.abs(rounded))
    codes = np.where(np.isnan(rounded), 0x7F, codes) | (np.signbit(rounded).astype(codes.dtype) << 7)
    return _bytes(codes.astype(np.uint8))


def _encode_e4m3_groups(fmt: Format, array: NDArray[Any]) -> bytes:
    import numpy as np

    fmt.nbytes(array.shape)
    groups = np.asarray(array, np.float32).reshape(-1, fmt.group_size)
    if not np.isfinite(groups).all():
        raise InvalidArgument(f"values that are not finite cannot be encoded as {fmt.name}")
    largest = np.abs(groups).max(axis=1, keepdims=True, initial=0.0)
    # not below the smallest normal number: dividing by what is rounded to nothing would make infinities
    scales = np.maximum(largest / np.float32(448.0), np.finfo(np.float32).tiny).astype("<f4")
    codes = _encode_by_table(round_to("f8_e4m3", groups / scales), e4m3_values())
    coded = np.frombuffer(codes, np.uint8).reshape(groups.shape)
    return _bytes(np.concatenate([scales.view(np.uint8), coded], axis=1))


def _encode_blocks(fmt: Format, array: NDArray[Any]) -> bytes:
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    size = fmt.nbytes(array.shape)
    if not array.shape:
        raise InvalidArgument(f"a single number cannot be encoded as {fmt.name}: it needs rows of whole blocks")
    if not size:
        return b""
    largest = float(np.abs(array).max())
    limit = float(np.finfo(np.float32).max) if fmt.name == "mxfp4" else _LARGEST_F16
    if not largest <= limit:
        raise InvalidArgument(
            f"values up to {largest} cannot be encoded as {fmt.name}: they must be finite and at most {limit}"
        )
    # gguf divides by scales that may be subnormal; the float16 scale is then zero, whatever the codes became
    with np.errstate(all="ignore"):
        packed = quants.quantize(array.astype(np.float32, copy=False), GGMLQuantizationType(fmt.ggml_type))
    return _bytes(packed)
