"""A GGUF model: one file, or all parts of a split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from runtime.dtypes import byteswap
from runtime.errors import MalformedFile
from runtime.formats.gguf_header import GgufHeader, read_header
from runtime.formats.mapped import MappedFile, MappedModel, stat_path
from runtime.formats.metadata import optional
from runtime.formats.sniff import DOWNLOAD_AGAIN

PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MAX_PARTS = 4096
"""More parts than any model has; each costs a file descriptor and a mapping."""


class GgufModel(MappedModel):
    """Tensors and metadata of a GGUF file or of all parts of a split.

    Of a split, `metadata` is that of the first part. `byte_order` is the file's; `data` is always little-endian,
    which costs a copy for a big-endian file.
    """

    def __init__(self, path: Path, mapped: Sequence[MappedFile], headers: Sequence[GgufHeader]) -> None:
        tensors = {name: entry for header in headers for name, entry in header.tensors.items()}
        super().__init__(path, "gguf", headers[0].metadata, mapped, tensors)
        self.byte_order = headers[0].byte_order
        self.version = headers[0].version

    def data(self, name: str) -> memoryview:
        """As the base class; a big-endian file's tensor is a copy in little-endian order."""
        stored = super().data(name)
        if self.byte_order == "little":
            return stored
        return memoryview(byteswap(self.tensors[name].format, stored))


def open_gguf(path: Path) -> GgufModel:
    """Open the GGUF file at `path`; when it is one part of a split, all parts, which must lie beside it."""
    first = MappedFile(path)
    header = read_header(first)
    where = f"{path}: "
    num_parts = optional(header.metadata, "split.count", int, 1)
    match = PART_NAME.fullmatch(path.name)
    if num_parts <= 1 and (match is None or int(match["count"]) == 1):
        return GgufModel(path, [first], [header])
    if match is None:
        raise MalformedFile(
            f"{where}split.count says {num_parts} parts, the file's name says none",
            remedy=f"name the parts NAME-00001-of-{num_parts:05d}.gguf and so on",
        )
    if int(match["count"]) != num_parts or not 1 <= num_parts <= MAX_PARTS:
        raise MalformedFile(
            f"{where}the file's name says {int(match['count'])} parts, its split.count says {num_parts}",
            remedy="give the file its original name back",
        )
    mapped, headers = _open_parts(path, match["stem"], num_parts)
    _check_parts(mapped, headers, num_parts)
    return GgufModel(path, mapped, headers)


def _open_parts(path: Path, stem: str, num_parts: int) -> tuple[list[MappedFile], list[GgufHeader]]:
    parts = [path.with_name(f"{stem}-{i + 1:05d}-of-{num_parts:05d}.gguf") for i in range(num_parts)]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        raise MalformedFile(
            f"{path}: {len(missing)} of {num_parts} parts are missing from its folder: {', '.join(missing[:4])}"
            + (" ..." if len(missing) > 4 else ""),
            remedy="download the missing parts into the same folder",
        )
    for part in parts:
        stat_path(part)
    mapped = [MappedFile(part) for part in parts]
    return mapped, [read_header(file) for file in mapped]


def _check_parts(mapped: Sequence[MappedFile], headers: Sequence[GgufHeader], num_parts: int) -> None:
    """Refuse parts that disagree about the split, the byte order or the model, or that share a tensor."""
    owner: dict[str, Path] = {}
    first = headers[0]
    for number, (file, header) in enumerate(zip(mapped, headers)):
        expected = {"split.count": num_parts, "split.no": number}
        for key in ("split.tensors.count", "general.architecture"):
            if key in header.metadata:
                expected[key] = first.metadata.get(key, header.metadata[key])
        for key, value in expected.items():
            if header.metadata.get(key) != value:
                raise MalformedFile(
                    f"{file.path}: {key} is {header.metadata.get(key)!r:.80}, expected {value!r:.80}: "
                    "the part belongs to another split",
                    remedy="download all parts of one model",
                )
        if header.byte_order != first.byte_order:
            raise MalformedFile(
                f"{file.path}: byte order {header.byte_order}, the first part's is {first.byte_order}",
                remedy="download all parts of one model",
            )
        for name in header.tensors:
            if name in owner:
                raise MalformedFile(
                    f"{file.path}: tensor '{name}' is also in {owner[name].name}", remedy=DOWNLOAD_AGAIN
                )
            owner[name] = file.path
    total = optional(first.metadata, "split.tensors.count", int, len(owner))
    if total != len(owner):
        raise MalformedFile(
            f"{mapped[0].path}: split.tensors.count is {total}, the {num_parts} parts hold {len(owner)} tensors",
            remedy="download all parts of one model",
        )
