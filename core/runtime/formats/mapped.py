"""Files mapped read-only, and the model whose tensors are views of them."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runtime.dtypes import TensorSpec
from runtime.errors import InvalidArgument
from runtime.formats.base import ModelFile, Progress

PREFETCH_BYTES = 16 << 20
"""One step of prefetching: long enough for a disk to stream, short enough for smooth progress."""


def stat_path(path: Path) -> Literal["file", "directory"]:
    """Whether `path` is a regular file or a directory; anything else raises InvalidArgument."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InvalidArgument(f"model '{path}' cannot be opened: {_reason(error)}", remedy="check the path") from None
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISREG(mode):
        return "file"
    raise InvalidArgument(
        f"model '{path}' is neither a file nor a directory", remedy="weights are mapped: save them to a file first"
    )


def file_kind(path: Path) -> Literal["gguf", "other"]:
    """What the first four bytes say."""
    return "gguf" if read_start(path, 4) == b"GGUF" else "other"


def read_start(path: Path, count: int) -> bytes:
    """Up to `count` bytes from the beginning of the file."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise InvalidArgument(f"'{path}' cannot be read: {_reason(error)}", remedy="check the path") from None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class MappedFile:
    """One file, mapped read-only.

    `view` is a memoryview of all its bytes, empty for an empty file.
    """

    def __init__(self, path: Path) -> None:
        stat_path(path)  # opening a FIFO would wait for its writer
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InvalidArgument(f"'{path}' cannot be mapped: {_reason(error)}") from None
        if self._map is not None:
            self.size = len(self._map)
        self.view = memoryview(self._map) if self._map is not None else memoryview(b"")

    def touch(self, start: int, stop: int) -> None:
        """Read one byte of every page in [start, stop), after asking the kernel for twice that range."""
        if self._map is None:
            return
        if hasattr(mmap, "MADV_WILLNEED"):
            first = start - start % mmap.PAGESIZE
            with suppress(OSError):  # a hint: a file system without it only reads later
                self._map.madvise(mmap.MADV_WILLNEED, first, min(2 * (stop - first), self.size - first))
        self.view[start : stop : mmap.PAGESIZE].tobytes()

    def release(self, start: int, stop: int) -> None:
        """Give the whole pages inside [start, stop) back; they stay in the page cache and come again when read."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = stop // mmap.PAGESIZE * mmap.PAGESIZE
        if self._map is not None and last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Drop this file's own references; the mapping goes with the last view of it."""
        self.view = memoryview(b"")
        self._map = None


@dataclass(frozen=True)
class Extent:
    """Where a tensor lies: which file, from which byte, how many bytes."""

    file: MappedFile
    offset: int
    nbytes: int


class MappedModel(ModelFile):
    """A model whose tensors are extents of mapped files."""

    def __init__(
        self,
        path: Path,
        kind: Literal["gguf", "hf"],
        metadata: Mapping[str, Any],
        mapped: Sequence[MappedFile],
        tensors: Mapping[str, tuple[TensorSpec, Extent]],
    ) -> None:
        self.path = path
        self.kind = kind
        self.metadata = metadata
        self.files = [file.path for file in mapped]
        self.tensors = {name: spec for name, (spec, _) in tensors.items()}
        self.generation_config: Mapping[str, Any] = {}
        self.tokenizer_files: Mapping[str, Path] = {}
        self._mapped = list(mapped)
        self._extents = {name: extent for name, (_, extent) in tensors.items()}

    def data(self, name: str) -> memoryview:
        """As the base class; without a copy."""
        self.spec(name)
        if not self._mapped:
            raise InvalidArgument(f"{self.path} is closed; tensor '{name}' cannot be read")
        extent = self._extents[name]
        return extent.file.view[extent.offset : extent.offset + extent.nbytes]

    def release(self, name: str) -> None:
        """As the base class."""
        extent = self._extents[name]
        extent.file.release(extent.offset, extent.offset + extent.nbytes)

    def release_all(self) -> None:
        """As the base class."""
        for file in self._mapped:
            file.release(0, file.size)

    def prefetch(self, progress: Progress | None = None) -> None:
        """As the base class."""
        total, done = sum(file.size for file in self._mapped), 0
        for file in self._mapped:
            for start in range(0, file.size, PREFETCH_BYTES):
                stop = min(start + PREFETCH_BYTES, file.size)
                file.touch(start, stop)
                done += stop - start
                if progress is not None:
                    progress(done, total)

    def close(self) -> None:
        """As the base class."""
        for file in self._mapped:
            file.close()
        self._mapped = []
