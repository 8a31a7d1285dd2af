"""The header of one GGUF file, versions 2 and 3, in either byte order.

Layout: magic "GGUF", version u32, tensor count u64, key count u64, then the key/value pairs, then one entry per tensor
(name, number of dimensions u32, dimensions u64 innermost first, GGML type u32, offset u64), then padding up to the
alignment, then the data that the offsets count from.

Source: docs/gguf.md of the ggml project.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from runtime.dtypes import FORMATS, Format, TensorSpec, describe_ggml_type
from runtime.errors import MalformedFile, Unsupported
from runtime.formats.cursor import Cursor
from runtime.formats.mapped import Extent, MappedFile
from runtime.formats.sniff import DOWNLOAD_AGAIN, refuse_unknown

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 20
MIN_KEY_BYTES = 8 + 1 + 4 + 1
MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8


@dataclass(frozen=True)
class GgufHeader:
    """What one GGUF file says before its data."""

    version: int
    byte_order: Literal["little", "big"]
    metadata: dict[str, Any]
    tensors: dict[str, tuple[TensorSpec, Extent]]


def read_header(file: MappedFile) -> GgufHeader:
    """Parse and check the header of `file`; no tensor data is touched."""
    version, byte_order = _version(file)
    cursor = Cursor(file.path, file.view, 8, byte_order)
    num_tensors = cursor.count("the number of tensors", MIN_TENSOR_BYTES)
    num_keys = cursor.count("the number of keys", MIN_KEY_BYTES)
    if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
        raise MalformedFile(
            f"{file.path}: {num_tensors} tensors and {num_keys} keys; limits are {MAX_TENSORS} and {MAX_KEYS}"
        )
    metadata = _metadata(cursor, num_keys)
    alignment = _alignment(file, metadata)
    entries = _tensor_entries(cursor, num_tensors)
    data_start = -(-cursor.position // alignment) * alignment
    return GgufHeader(version, byte_order, metadata, _place(file, entries, data_start, alignment))


def _version(file: MappedFile) -> tuple[int, Literal["little", "big"]]:
    start = bytes(file.view[:8])
    if start[:4] != b"GGUF":
        raise refuse_unknown(file.path, "a GGUF file")
    if file.size < 24:
        raise MalformedFile(f"{file.path}: {file.size} bytes, a GGUF header takes at least 24", remedy=DOWNLOAD_AGAIN)
    little, big = int.from_bytes(start[4:], "little"), int.from_bytes(start[4:], "big")
    byte_order: Literal["little", "big"] = "big" if little & 0xFFFF == 0 and big & 0xFFFF else "little"
    version = little if byte_order == "little" else big
    if version in VERSIONS:
        return version, byte_order
    if version == 1:
        raise Unsupported(
            f"{file.path}: GGUF version 1 is not supported; versions 2 and 3 are",
            remedy="convert the original model again, to version 3",
        )
    if 0 < version < 1000:
        raise Unsupported(f"{file.path}: GGUF version {version} is newer than this runtime; versions 2 and 3 are known")
    raise MalformedFile(f"{file.path}: GGUF version {version} does not exist", remedy=DOWNLOAD_AGAIN)


def _metadata(cursor: Cursor, num_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(num_keys):
        key = cursor.name(f"key {index}", metadata)
        value_type = cursor.number("I", f"the value type of key '{key[:80]}'")
        metadata[key] = cursor.value(value_type, f"the value of key '{key[:80]}'")
    return metadata


def _alignment(file: MappedFile, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise MalformedFile(
            f"{file.path}: general.alignment is {alignment!r:.80}; it must be a power of two", remedy=DOWNLOAD_AGAIN
        )
    return alignment


def _tensor_entries(cursor: Cursor, num_tensors: int) -> dict[str, tuple[TensorSpec, int]]:
    """Spec and offset from the beginning of the data, by name."""
    entries: dict[str, tuple[TensorSpec, int]] = {}
    for index in range(num_tensors):
        name = cursor.name(f"tensor {index}", entries)
        what = f"tensor '{name[:80]}'"
        num_dims = cursor.number("I", f"the number of dimensions of {what}")
        if num_dims > MAX_DIMS:
            raise cursor.fault(what, f"has {num_dims} dimensions, GGUF allows {MAX_DIMS}")
        dims = [cursor.number("Q", f"a dimension of {what}") for _ in range(num_dims)]
        ggml_type = cursor.number("I", f"the type of {what}")
        offset = cursor.number("Q", f"the offset of {what}")
        shape = tuple(reversed(dims))
        fmt = _format(cursor, name, ggml_type)
        _check_shape(cursor, what, fmt, shape)
        entries[name] = (TensorSpec(fmt, shape), offset)
    return entries


def _format(cursor: Cursor, name: str, ggml_type: int) -> Format:
    fmt = FORMATS.from_ggml_type(ggml_type)
    if fmt is None:
        known = ", ".join(f.name for f in FORMATS if f.ggml_type is not None)
        raise Unsupported(
            f"{cursor.path}: tensor '{name}' cannot be read: {describe_ggml_type(ggml_type)}",
            remedy=f"use a file with one of: {known}",
        )
    return fmt


def _check_shape(cursor: Cursor, what: str, fmt: Format, shape: tuple[int, ...]) -> None:
    # Without the largest dimension too: a zero elsewhere must not hide an overflow.
    if max(shape, default=0) >= 1 << 63 or prod(d or 1 for d in shape) * fmt.block_bytes >= 1 << 63:
        raise cursor.fault(what, f"has shape {shape}, more than 2**63 bytes of {fmt.name}")
    if (shape[-1] if shape else 1) % fmt.group_size:
        raise cursor.fault(what, f"has shape {shape}; {fmt.name} stores rows in blocks of {fmt.group_size} elements")


def _place(
    file: MappedFile, entries: dict[str, tuple[TensorSpec, int]], data_start: int, alignment: int
) -> dict[str, tuple[TensorSpec, Extent]]:
    placed: dict[str, tuple[TensorSpec, Extent]] = {}
    needed, last = 0, ""
    for name, (spec, offset) in entries.items():
        if offset % alignment:
            raise MalformedFile(
                f"{file.path}: tensor '{name}' begins at offset {offset}, not a multiple of the alignment {alignment}",
                remedy=DOWNLOAD_AGAIN,
            )
        placed[name] = (spec, Extent(file, data_start + offset, spec.nbytes()))
        if data_start + offset + spec.nbytes() > needed:
            needed, last = data_start + offset + spec.nbytes(), name
    if needed > file.size:
        raise MalformedFile(
            f"{file.path}: tensor '{last}' ({entries[last][0]}) ends at byte {needed}, the file has {file.size} bytes; "
            f"{needed - file.size} are missing",
            remedy=DOWNLOAD_AGAIN,
        )
    _refuse_overlap(file, placed)
    return placed


def _refuse_overlap(file: MappedFile, placed: dict[str, tuple[TensorSpec, Extent]]) -> None:
    end, before = 0, ""
    for name, (_, extent) in sorted(placed.items(), key=lambda item: (item[1][1].offset, item[1][1].nbytes)):
        if extent.offset < end and extent.nbytes:
            raise MalformedFile(
                f"{file.path}: tensor '{name}' begins at byte {extent.offset}, inside '{before}', which ends at {end}",
                remedy=DOWNLOAD_AGAIN,
            )
        if extent.nbytes:
            end, before = extent.offset + extent.nbytes, name
