"""Plain formats: one element at a time, IEEE floats, bfloat16, integers, booleans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.dtypes.format import Decode, Format, Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def _view(dtype: str, result: str) -> Decode:
    def decode(blocks: NDArray[np.uint8]) -> NDArray[Any]:
        return blocks.reshape(-1).view(dtype).astype(result).reshape(-1, 1)

    return decode


def _decode_bf16(blocks: NDArray[np.uint8]) -> NDArray[Any]:
    return (blocks.reshape(-1).view("<u2").astype("u4") << 16).view("f4").reshape(-1, 1)


def _decode_bool(blocks: NDArray[np.uint8]) -> NDArray[Any]:
    is_set: NDArray[np.bool_] = blocks != 0
    return is_set


def _plain(name: str, kind: Kind, dtype: str, result: str, ggml_type: int | None = None) -> Format:
    return Format(name, kind, 1, int(dtype[-1]), _view(dtype, result), ggml_type)


F64 = _plain("f64", "float", "<f8", "f8", 28)
F32 = _plain("f32", "float", "<f4", "f4", 0)
F16 = _plain("f16", "float", "<f2", "f4", 1)
BF16 = Format("bf16", "float", 1, 2, _decode_bf16, 30)
I8 = _plain("i8", "int", "<i1", "i1", 24)
I16 = _plain("i16", "int", "<i2", "i2", 25)
I32 = _plain("i32", "int", "<i4", "i4", 26)
I64 = _plain("i64", "int", "<i8", "i8", 27)
U8 = _plain("u8", "uint", "<u1", "u1")
U16 = _plain("u16", "uint", "<u2", "u2")
U32 = _plain("u32", "uint", "<u4", "u4")
U64 = _plain("u64", "uint", "<u8", "u8")
BOOL = Format("bool", "bool", 1, 1, _decode_bool)

PLAIN = (F64, F32, F16, BF16, I8, I16, I32, I64, U8, U16, U32, U64, BOOL)
