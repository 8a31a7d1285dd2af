"""Model files: GGUF, safetensors and Hugging Face directories, opened header first and mapped."""

from __future__ import annotations

from pathlib import Path

from runtime.formats.base import ModelFile, Progress
from runtime.formats.metadata import LazyArray, optional, optional_list, require, require_list

__all__ = ["LazyArray", "ModelFile", "Progress", "open_model", "optional", "optional_list", "require", "require_list"]


def open_model(path: str | Path) -> ModelFile:
    """Open a model by its header alone; no weight is read until it is asked for.

    `path` is a GGUF file (any part of a split opens all parts), a `.safetensors` file beside its config.json (any
    shard opens all shards), or a Hugging Face directory.

    Raises InvalidArgument when there is no such model, MalformedFile when a file breaks its format, and Unsupported
    when a well-formed file needs a format that is not known here.
    """
    from runtime.formats.mapped import file_kind, stat_path
    from runtime.formats.sniff import refuse_unknown

    path = Path(path)
    if stat_path(path) == "directory":
        from runtime.formats.hf import open_directory

        return open_directory(path)
    if path.suffix == ".safetensors":
        from runtime.formats.hf import open_file

        return open_file(path)
    if file_kind(path) == "gguf":
        from runtime.formats.gguf_model import open_gguf

        return open_gguf(path)
    raise refuse_unknown(path)
