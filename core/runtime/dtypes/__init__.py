"""Number formats, plain and in blocks, and the description of a tensor."""

from runtime.dtypes.byteorder import byteswap
from runtime.dtypes.catalogue import FORMATS, describe_ggml_type, from_safetensors_dtype, to_safetensors_dtype
from runtime.dtypes.encode import can_encode, encode
from runtime.dtypes.float8 import F8_E4M3, F8_E5M2
from runtime.dtypes.format import Format, FormatRegistry, Kind
from runtime.dtypes.plain import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64
from runtime.dtypes.rounding import round_to
from runtime.dtypes.spec import Dim, Span, TensorSpec

__all__ = [
    "BF16",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F16",
    "F32",
    "F64",
    "FORMATS",
    "I8",
    "I16",
    "I32",
    "I64",
    "U8",
    "U16",
    "U32",
    "U64",
    "Dim",
    "Format",
    "FormatRegistry",
    "Kind",
    "Span",
    "TensorSpec",
    "byteswap",
    "can_encode",
    "describe_ggml_type",
    "encode",
    "from_safetensors_dtype",
    "round_to",
    "to_safetensors_dtype",
]
