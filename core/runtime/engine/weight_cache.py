"""Packed weights on disk: written by the process that packed them, mapped by those that start later.

One file holds all packed weights of one model file for one `weight_layout`:

    magic 8 bytes | bytes of the header u32 | its crc32 u32 | header (JSON) | weights, each at a multiple of 4096

The header names what the model file was (size, time, samples of its bytes), the layout, every weight with its form and
place, and a sum of every MiB. The file is written under another name and renamed, so that nobody sees half of it, and
whoever maps it keeps what he mapped.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.backend import CachesWeights, Device
from runtime.formats import ModelFile

if TYPE_CHECKING:
    from io import FileIO

MAGIC = b"RTPACKED"
VERSION = 1
SUFFIX = ".weights"
ALIGNMENT = 4096
SUM_BYTES = 1 << 20
STALE_AFTER_S = 3600.0
"""A temporary file of this age belongs to a process that is gone."""
_START = struct.Struct("<8sII")
_MAX_HEADER_BYTES = 64 << 20
_SAMPLES, _SAMPLE_BYTES, _HEAD_BYTES = 64, 4096, 1 << 20


@dataclass
class _Kept:
    """A weight that goes to the file: its form, its bytes, and what to wait for before they are read."""

    form: str
    data: memoryview
    finish: Callable[[], None] | None = None


@dataclass
class Slot:
    """See `runtime.backend.WeightSlot`."""

    cache: WeightCache
    name: str

    def find(self) -> tuple[str, memoryview] | None:
        """As the protocol."""
        return self.cache.find(self.name)

    def keep(self, form: str, data: memoryview, finish: Callable[[], None]) -> None:
        """As the protocol."""
        self.cache.keep(self.name, form, data, finish)


@dataclass
class WeightCache:
    """The cache file of one model for one layout. Nothing that goes wrong with it stops a start: it is told on stderr.

    `slot` is given to the executor; `is_sound` tells, when everything is loaded, whether what was mapped has the sums
    that it was written with; `write` stores what had to be packed, in a thread that `close` waits for.
    """

    path: Path
    layout: str
    identity: Sequence[Any]
    _entries: dict[str, tuple[str, memoryview]] = field(default_factory=dict)
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _check: _Check | None = None
    _writer: threading.Thread | None = None

    @classmethod
    def open(cls, folder: str | Path, file: ModelFile, device: Device) -> WeightCache | None:
        """The cache of `file` for `device` below `folder`; None, with the reason on stderr, where there can be none."""
        if not isinstance(device, CachesWeights):
            tell(f"{device.info.name} has no packed weights to keep; nothing is cached")
            return None
        folder = Path(folder).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            identity = [_identity(path) for path in file.files]
        except OSError as error:
            tell(f"{folder} cannot be used: {error.strerror or error}; weights are packed at every start")
            return None
        key = zlib.crc32("\0".join([*(str(p.resolve()) for p in file.files), device.weight_layout]).encode())
        label = "".join(
            c if c.isalnum() or c in "-_." else "_" for c in f"{file.path.stem[:60]}-{device.weight_layout}"
        )
        cache = cls(folder / f"{label}-{key:08x}{SUFFIX}", device.weight_layout, identity)
        cache._map()
        return cache

    @property
    def summary(self) -> str:
        """For the status line."""
        return f"weights mapped from {self.path}" if self._entries and not self._kept else "weights packed"

    def slot(self, device: Device, name: str) -> Slot | None:
        """The place of weight `name`, for devices that pack as this file says."""
        return Slot(self, name) if isinstance(device, CachesWeights) and device.weight_layout == self.layout else None

    def find(self, name: str) -> tuple[str, memoryview] | None:
        """Form and bytes of a weight, or None."""
        return self._entries.get(name)

    def keep(self, name: str, form: str, data: memoryview, finish: Callable[[], None]) -> None:
        """Remember what `write` shall store."""
        self._kept[name] = _Kept(form, data, finish)

    def is_sound(self) -> bool:
        """Wait for the check of what was mapped; after a failure the cache is empty, and the failure was told."""
        if self._check is None or self._check.result():
            return True
        self._drop("its bytes are not those that were written")
        return False

    def write(self) -> None:
        """Store everything, if something had to be packed, while the caller goes on."""
        if self._kept:
            self._writer = threading.Thread(target=self._write, name="weight cache")
            self._writer.start()

    def close(self) -> None:
        """Wait until everything is stored, and let go of it."""
        if self._check is not None:
            self._check.result()
        if self._writer is not None:
            self._writer.join()
        self._entries, self._kept, self._check, self._writer = {}, {}, None, None

    def _drop(self, why: str) -> None:
        self._entries, self._check = {}, None
        tell(f"{self.path}: {why}; weights are packed anew")

    def _map(self) -> None:
        """Take the entries of the file, if it belongs to this model and this layout."""
        try:
            with self.path.open("rb") as file:
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            self._drop(f"it cannot be read ({error})")
            return
        try:
            header, start = _read_header(view)
            if header["identity"] != self.identity:
                self._drop("the model file has changed since")
                return
            if header["layout"] != self.layout or header["size"] != len(view):
                raise ValueError(f"{len(view)} bytes of {header['size']}, layout {header['layout']!r}")
            entries = {
                name: (str(form), view[offset : offset + nbytes])
                for name, (form, offset, nbytes) in header["weights"].items()
                if start <= offset and offset % ALIGNMENT == 0 and 0 < nbytes <= len(view) - offset
            }
            if len(entries) != len(header["weights"]):
                raise ValueError("a weight lies outside the file")
            self._check = _Check(view[start:], header["sums"])
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            self._drop(f"it is damaged ({error})")
            return
        self._entries = entries

    def _write(self) -> None:
        """In the thread: under another name first; whatever fails is told and leaves nothing behind."""
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            _remove_stale(self.path)
            kept = self._all()
            for weight in kept.values():
                if weight.finish is not None:
                    weight.finish()
            _write_file(temporary, {"identity": self.identity, "layout": self.layout}, kept)
            temporary.replace(self.path)
        except OSError as error:
            tell(f"{self.path} cannot be written: {error.strerror or error}; the next start packs again")
        finally:
            with suppress(OSError):  # it is there only after a failure, and a name that stays is removed another time
                temporary.unlink(missing_ok=True)

    def _all(self) -> dict[str, _Kept]:
        """What was found and what was packed."""
        return {name: _Kept(form, data) for name, (form, data) in self._entries.items()} | self._kept


class _Check:
    """Sums of all data beside the main thread, by two threads: each waits for memory half of its time."""

    def __init__(self, data: memoryview, expected: Sequence[Sequence[int]]) -> None:
        self._data = data
        self._expected = [list(pair) for pair in expected]
        self._found: list[list[list[int]]] = [[], []]
        count = -(-len(data) // SUM_BYTES)
        self._border = count // 2 * SUM_BYTES
        if count != len(self._expected):
            raise ValueError(f"{len(self._expected)} sums of {count} MiB")
        halves = (data[: self._border], data[self._border :])
        self._threads = [threading.Thread(target=self._sum, args=(i, half)) for i, half in enumerate(halves)]
        for thread in self._threads:
            thread.start()

    def result(self) -> bool:
        """Whether every sum is the expected one."""
        for thread in self._threads:
            thread.join()
        return self._found[0] + self._found[1] == self._expected

    def _sum(self, index: int, half: memoryview) -> None:
        self._found[index] = sums(half)


def sums(data: memoryview) -> list[list[int]]:
    """Exclusive or, and sum, of the 64-bit words of every MiB: as fast as memory is read, and no single change escapes.

    One call does all whole MiBs, since a thread that asks for the interpreter lock often waits long for it.
    """
    import numpy as np

    whole = len(data) // SUM_BYTES * SUM_BYTES
    words = np.frombuffer(data[:whole], np.uint64).reshape(-1, SUM_BYTES // 8)
    found = [np.bitwise_xor.reduce(words, axis=1), np.add.reduce(words, axis=1)]
    result = [[int(a), int(b)] for a, b in zip(*found)]
    if whole < len(data):
        result += sums(memoryview(bytes(data[whole:]).ljust(SUM_BYTES, b"\0")))
    return result


def tell(line: str) -> None:
    """A line for a person: the start goes on."""
    print(f"weight cache: {line}", file=sys.stderr)


def content_digest(paths: Sequence[Path]) -> str:
    """32 hexadecimal digits that tell files apart by size, beginning and samples, whatever they are called."""
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        _, size, _, samples = _identity(path)
        digest.update(f"{size} {samples}\n".encode())
    return digest.hexdigest()


def _identity(path: Path) -> list[Any]:
    """Name, size, time of change, and a hash of the beginning and of samples: what JSON gives back equal."""
    import hashlib

    status = path.stat()
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(_HEAD_BYTES))
        for i in range(1, _SAMPLES + 1):
            file.seek(max(0, status.st_size * i // _SAMPLES - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return [path.name, status.st_size, status.st_mtime_ns, digest.hexdigest()]


def _read_header(view: memoryview) -> tuple[dict[str, Any], int]:
    """The header and where the data begins; raises ValueError or struct.error."""
    magic, nbytes, crc = _START.unpack_from(view)
    if magic != MAGIC or nbytes > min(_MAX_HEADER_BYTES, len(view) - _START.size):
        raise ValueError("it does not begin as it should")
    text = bytes(view[_START.size : _START.size + nbytes])
    if zlib.crc32(text) != crc:
        raise ValueError("its header has another checksum")
    header = json.loads(text)
    if not isinstance(header, dict) or header.get("version") != VERSION:
        raise ValueError("it has another version")
    return header, int(header["start"])


def _write_file(path: Path, header: Mapping[str, Any], kept: Mapping[str, _Kept]) -> None:
    weights: dict[str, tuple[str, int, int]] = {}
    nbytes = sum(_aligned(weight.data.nbytes) for weight in kept.values())
    # Room for the header: its length is known once the sums are, so what it can take at most is set aside.
    room = (
        4096
        + len(json.dumps(header))
        + sum(len(json.dumps(name)) + 96 for name in kept)
        + (nbytes // SUM_BYTES + 1) * 48
    )
    start = offset = _aligned(_START.size + room)
    free = shutil.disk_usage(path.parent).free
    if free < start + nbytes:
        raise OSError(None, f"{(start + nbytes) / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")
    with path.open("w+b", buffering=0) as file:
        for name, weight in kept.items():
            file.seek(offset)
            _write_all(file.write, weight.data)
            weights[name] = (weight.form, offset, weight.data.nbytes)
            offset += _aligned(weight.data.nbytes)
        file.truncate(offset)
        content = {"version": VERSION, **header, "start": start, "size": offset, "weights": weights}
        content["sums"] = _sums_of_file(file, start)
        text = json.dumps(content).encode()
        assert _START.size + len(text) <= start
        file.seek(0)
        _write_all(file.write, memoryview(_START.pack(MAGIC, len(text), zlib.crc32(text)) + text))
        os.fsync(file.fileno())


def _sums_of_file(file: FileIO, start: int) -> list[list[int]]:
    """Read back in pieces, since all of it would take as much memory again."""
    piece, found = memoryview(bytearray(16 * SUM_BYTES)), []
    file.seek(start)
    while nbytes := _read_into(file, piece):
        found += sums(piece[:nbytes])
    return found


def _read_into(file: FileIO, piece: memoryview) -> int:
    done = 0
    while done < piece.nbytes and (nbytes := file.readinto(piece[done:])):
        done += nbytes
    return done


def _write_all(write: Callable[[memoryview], int | None], data: memoryview) -> None:
    while data.nbytes:
        data = data[write(data) or 0 :]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _remove_stale(path: Path) -> None:
    for left in path.parent.glob(f"*{SUFFIX}.*.tmp"):
        with suppress(OSError):  # another process may remove it too
            if time.time() - left.stat().st_mtime > STALE_AFTER_S:
                left.unlink()
