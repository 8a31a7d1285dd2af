"""The header of one safetensors file.

Layout: header length u64, the header as a JSON object (tensor name -> dtype, shape, data_offsets), then the tensors
back to back, little-endian. Checked here by the rules of the format: no gap, no overlap, nothing behind the last one.

Source: the format description in the safetensors project's README.
"""

from __future__ import annotations

from math import prod
from typing import Any, TypeGuard

from runtime.dtypes import FORMATS, TensorSpec, from_safetensors_dtype
from runtime.errors import MalformedFile, Unsupported
from runtime.formats.json_file import parse_json
from runtime.formats.mapped import Extent, MappedFile
from runtime.formats.sniff import DOWNLOAD_AGAIN, describe, refuse_unknown

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""


def read_safetensors(file: MappedFile) -> dict[str, tuple[TensorSpec, Extent]]:
    """Spec and extent of every tensor of `file`; no tensor data is touched."""
    header, data_start = _header(file)
    entries = {name: _entry(file, name, value, data_start) for name, value in header.items() if name != "__metadata__"}
    end, before = data_start, ""
    for name, (_, extent) in sorted(entries.items(), key=lambda item: (item[1][1].offset, item[1][1].nbytes)):
        if extent.offset != end:
            rule = f"inside '{before}', which ends at" if extent.offset < end else "the tensor before it ends at"
            raise _fault(file, f"tensor '{name}' begins at byte {extent.offset}, {rule} {end}")
        end, before = extent.offset + extent.nbytes, name
    if end != file.size:
        state = f"{end - file.size} are missing" if end > file.size else f"{file.size - end} belong to no tensor"
        raise _fault(file, f"the header describes {end} bytes, the file has {file.size}; {state}")
    return entries


def _fault(file: MappedFile, message: str) -> MalformedFile:
    return MalformedFile(f"{file.path}: {message}", remedy=DOWNLOAD_AGAIN)


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.view[:8], "little")
    if file.size < 10 or file.view[8] != ord("{"):
        if describe(file.path) == "a safetensors file" or 0 < file.size < 10:
            raise _fault(file, f"{file.size} bytes, too short for a safetensors header")
        raise refuse_unknown(file.path, "a safetensors file")
    if length > MAX_HEADER_BYTES or length > file.size - 8:
        raise _fault(
            file, f"its header should take {length} bytes; the file has {file.size}, the limit is {MAX_HEADER_BYTES}"
        )
    text = bytes(file.view[8 : 8 + length])
    return parse_json(text, f"{file.path}: the header", unique_keys=True), 8 + length


def _entry(file: MappedFile, name: str, value: Any, data_start: int) -> tuple[TensorSpec, Extent]:
    if not name.isprintable():  # names are shown in errors and tables, and must not steer a terminal
        raise _fault(file, f"a tensor has the unprintable name {name[:80]!r}")
    if not isinstance(value, dict):
        raise _fault(file, f"the entry of tensor '{name}' is {value!r:.80}, expected an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise _fault(
            file, f"tensor '{name}' has dtype {dtype!r:.40}, shape {shape!r:.80}, data_offsets {offsets!r:.80}"
        )
    fmt = from_safetensors_dtype(dtype)
    if fmt is None:
        known = ", ".join(f.name for f in FORMATS if not f.is_quantized)
        raise Unsupported(
            f"{file.path}: tensor '{name}' has dtype {dtype[:40]!r}, which is unknown", remedy=f"known: {known}"
        )
    if prod(d or 1 for d in shape) * fmt.block_bytes >= 1 << 63:
        raise _fault(file, f"tensor '{name}' has shape {shape!r:.200}, more than 2**63 bytes of {fmt.name}")
    if (shape[-1] if shape else 1) % fmt.group_size:
        raise _fault(file, f"tensor '{name}' has shape {shape}; {fmt.name} packs {fmt.group_size} elements at a time")
    spec = TensorSpec(fmt, tuple(shape))
    if offsets[1] - offsets[0] != spec.nbytes():
        raise _fault(
            file,
            f"tensor '{name}' ({spec}) takes {spec.nbytes()} bytes, "
            f"its data_offsets {offsets} span {offsets[1] - offsets[0]}",
        )
    return spec, Extent(file, data_start + offsets[0], spec.nbytes())


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
