"""Small files for the tests of formats, written by hand, byte by byte."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Key = tuple[str, int, bytes]
Tensor = tuple[str, Sequence[int], int, int]


def gguf_bytes(
    keys: Sequence[Key] = (),
    tensors: Sequence[Tensor] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    order: str = "<",
    num_keys: int | None = None,
    num_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A GGUF file: keys are (name, value type, encoded value), tensors (name, dims innermost first, type, offset)."""

    def text(value: str) -> bytes:
        return struct.pack(order + "Q", len(value.encode())) + value.encode()

    out = b"GGUF" + struct.pack(
        order + "IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    for name, value_type, value in keys:
        out += text(name) + struct.pack(order + "I", value_type) + value
    for name, dims, ggml_type, offset in tensors:
        out += text(name) + struct.pack(f"{order}I{len(dims)}QIQ", len(dims), *dims, ggml_type, offset)
    return out + bytes(-len(out) % alignment) + data


@pytest.fixture
def make_gguf() -> Callable[..., bytes]:
    return gguf_bytes


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(content: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.fixture(scope="session")
def llama_vocab() -> Path:
    default = Path(__file__).resolve().parents[3] / "../shared"
    path = Path(os.environ.get("RUNTIME_SHARED", default)) / "data/vocab/ggml-vocab-llama-bpe.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path
