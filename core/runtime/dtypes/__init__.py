"""Number formats, plain and in blocks, and the description of a tensor."""

from runtime.dtypes.format import Format, FormatRegistry, Kind
from runtime.dtypes.plain import BF16, F16, F32, F64, I8, I16, I32, I64, PLAIN, U8
from runtime.dtypes.spec import Dim, Span, TensorSpec

FORMATS = FormatRegistry()
"""Every format that this runtime can read."""

for _format in PLAIN:
    FORMATS.add(_format)

__all__ = [
    "BF16",
    "F16",
    "F32",
    "F64",
    "FORMATS",
    "I8",
    "I16",
    "I32",
    "I64",
    "U8",
    "Dim",
    "Format",
    "FormatRegistry",
    "Kind",
    "Span",
    "TensorSpec",
]
