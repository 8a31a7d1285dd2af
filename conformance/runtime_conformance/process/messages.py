"""Messages between the suite and its workers: a line of JSON, then raw bytes of arrays; no code is exchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

Blobs = Sequence["NDArray[Any]"]


def write_message(stream: IO[bytes], header: Mapping[str, Any], blobs: Blobs = ()) -> None:
    """Send `header` and the bytes of `blobs` (uint8 arrays)."""
    line = json.dumps({**header, "blobs": [int(b.size) for b in blobs]}, separators=(",", ":"))
    stream.write(line.encode() + b"\n")
    for blob in blobs:
        stream.write(blob.tobytes())
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], list[Any]] | None:
    """The next message, or None at the end of the stream."""
    import numpy as np

    line = stream.readline()
    if not line:
        return None
    header = json.loads(line)
    blobs = []
    for size in header.pop("blobs"):
        data = stream.read(size)
        if len(data) < size:
            return None
        blobs.append(np.frombuffer(data, np.uint8))
    return header, blobs
