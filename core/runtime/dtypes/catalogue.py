"""Every format that this runtime can read, and the names that other people's files give them."""

from __future__ import annotations

from runtime.dtypes.blocks import BLOCKS
from runtime.dtypes.float8 import F8_E4M3, F8_E4M3_G128, F8_E5M2
from runtime.dtypes.format import Format, FormatRegistry
from runtime.dtypes.plain import PLAIN

FORMATS = FormatRegistry()
"""Every format that this runtime can read."""

for _format in (*PLAIN, F8_E4M3, F8_E5M2, F8_E4M3_G128, *BLOCKS):
    FORMATS.add(_format)

# safetensors names its plain types in capitals; it stores no block formats
_FROM_SAFETENSORS = {fmt.name.upper(): fmt for fmt in (*PLAIN, F8_E4M3, F8_E5M2)}
_TO_SAFETENSORS = {fmt.name: dtype for dtype, fmt in _FROM_SAFETENSORS.items()}

_REMOVED_GGML_TYPES = {
    4: "Q4_2 (type 4) was removed from GGML in 2023",
    5: "Q4_3 (type 5) was removed from GGML in 2023",
    31: "Q4_0_4_4 (type 31) was removed from GGUF files in 2024: q4_0 is repacked at load time instead",
    32: "Q4_0_4_8 (type 32) was removed from GGUF files in 2024: q4_0 is repacked at load time instead",
    33: "Q4_0_8_8 (type 33) was removed from GGUF files in 2024: q4_0 is repacked at load time instead",
    36: "IQ4_NL_4_4 (type 36) was removed from GGUF files in 2024; bitnet.cpp uses the same number for I2_S",
    37: "IQ4_NL_4_8 (type 37) was removed from GGUF files in 2024: iq4_nl is repacked at load time instead",
    38: "IQ4_NL_8_8 (type 38) was removed from GGUF files in 2024: iq4_nl is repacked at load time instead",
}
_UNREADABLE_GGML_TYPES = {
    9: "Q8_1 (type 9) is an activation format, never stored in files",
    15: "Q8_K (type 15) is an activation format, never stored in files",
    41: "Q1_0 (type 41) is a 1-bit format of llama.cpp that this runtime does not decode",
    42: "Q2_0 (type 42) is a 2-bit format of llama.cpp that this runtime does not decode",
}


def describe_ggml_type(ggml_type: int) -> str:
    """What GGML type id `ggml_type` is, as a clause for a message; for an unreadable one, why it is refused."""
    fmt = FORMATS.from_ggml_type(ggml_type)
    if fmt is not None:
        return f"type {ggml_type} is {fmt.name}"
    refusal = _REMOVED_GGML_TYPES.get(ggml_type) or _UNREADABLE_GGML_TYPES.get(ggml_type)
    return refusal or f"type {ggml_type} is not known"


def from_safetensors_dtype(dtype: str) -> Format | None:
    """The format that safetensors headers call `dtype` ("BF16", "F8_E4M3", ...), or None."""
    return _FROM_SAFETENSORS.get(dtype)


def to_safetensors_dtype(fmt: Format) -> str | None:
    """The name of `fmt` in safetensors headers, or None where safetensors cannot hold it."""
    return _TO_SAFETENSORS.get(fmt.name)
