"""What the front and the loop of an engine tell each other, and how it is written into a pipe."""

from __future__ import annotations

import pickle
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from runtime.engine.embedding import Pooling
from runtime.engine.request import RequestOutput
from runtime.engine.sampling_params import SamplingParams
from runtime.engine.stats import EngineStats

_LENGTH = struct.Struct("<Q")


# --- to the loop


@dataclass(frozen=True)
class Add:
    """A new request; token ids as 32-bit integers."""

    request_id: str
    token_ids: bytes
    params: SamplingParams
    priority: int
    tenant: str
    cache_salt: str
    skip_reading_prefix_cache: bool
    timeout_s: float | None


@dataclass(frozen=True)
class Abort:
    """End a request."""

    request_id: str


@dataclass(frozen=True)
class Embed:
    """A text to embed; answered under `call_id`."""

    call_id: int
    token_ids: bytes
    pooling: Pooling


@dataclass(frozen=True)
class CancelEmbed:
    """Nobody waits for the embedding `call_id` any more."""

    call_id: int


@dataclass(frozen=True)
class ResetPrefixCache:
    """Forget what free blocks hold; answered under `call_id`."""

    call_id: int


@dataclass(frozen=True)
class PrepareGrammars:
    """Structured output will be asked for: build what it needs, beside the steps."""


@dataclass(frozen=True)
class Stop:
    """Abort everything and end the loop."""


Command = Add | Abort | Embed | CancelEmbed | ResetPrefixCache | PrepareGrammars | Stop


# --- from the loop


@dataclass(frozen=True)
class Progress:
    """Bytes of weights that are loaded, and in all."""

    done: int
    total: int


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    max_model_len: int
    vocab_size: int
    max_num_seqs: int
    status: tuple[str, ...]
    stats: EngineStats


@dataclass(frozen=True)
class Batch:
    """All that came of one step. `answers` are (call_id, value or error)."""

    outputs: tuple[RequestOutput, ...]
    answers: tuple[tuple[int, Any], ...]
    stats: EngineStats


@dataclass(frozen=True)
class Failed:
    """The end: what stopped the loading or the loop, and its stack."""

    error: BaseException
    stack: str


Message = Progress | Ready | Batch | Failed


def pack_token_ids(token_ids: Sequence[int]) -> bytes:
    """Token ids, 4 bytes each."""
    return array("i", token_ids).tobytes()


def unpack_token_ids(data: bytes) -> list[int]:
    """The reverse."""
    return array("i", data).tolist()


def write_frame(stream: IO[bytes], message: object) -> None:
    """Write one message in one piece."""
    data = pickle.dumps(message, protocol=5)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Any:
    """The next message; raises EOFError when the other side is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)
