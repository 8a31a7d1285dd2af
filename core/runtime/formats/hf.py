"""Hugging Face models: config.json and safetensors, in one file or in shards with an index."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.dtypes import TensorSpec
from runtime.errors import InvalidArgument, MalformedFile, RuntimeFault
from runtime.formats.json_file import read_json
from runtime.formats.mapped import Extent, MappedFile, MappedModel
from runtime.formats.safetensors_file import read_safetensors
from runtime.formats.sniff import refuse_pickle

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_NAME = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def open_directory(directory: Path) -> MappedModel:
    """Open a Hugging Face directory."""
    config = _config(directory)
    if (directory / SINGLE).exists():
        mapped = MappedFile(directory / SINGLE)
        return _model(directory, directory, config, [mapped], read_safetensors(mapped))
    if (directory / INDEX).exists():
        return _open_index(directory, directory, config)
    raise _no_weights(directory)


def open_file(path: Path) -> MappedModel:
    """Open a `.safetensors` file beside its config.json; a shard opens all shards of its index."""
    mapped = MappedFile(path)
    directory = path.parent
    if SHARD_NAME.fullmatch(path.name):
        if not (directory / INDEX).exists():
            raise InvalidArgument(
                f"'{path}' is a shard, and there is no {INDEX} beside it to name the others",
                remedy=f"download {INDEX} and all shards into one directory",
            )
        return _open_index(path, directory, _config(directory, path))
    tensors = read_safetensors(mapped)  # first: that the file is broken matters more than a missing config.json
    return _model(path, directory, _config(directory, path), [mapped], tensors)


def _config(directory: Path, weights: Path | None = None) -> dict[str, Any]:
    path = directory / CONFIG
    if path.exists():
        return read_json(path)
    if weights is not None:
        raise InvalidArgument(
            f"there is no {CONFIG} beside '{weights}', so nothing says which architecture it is",
            remedy=f"put the model's {CONFIG} and tokenizer files into the same directory",
        )
    gguf = sorted(directory.glob("*.gguf"))
    remedy = f"did you mean '{gguf[0]}'?" if gguf else "give a GGUF file, or a directory that holds a whole model"
    raise InvalidArgument(f"directory '{directory}' has no {CONFIG}, so it is no Hugging Face model", remedy=remedy)


def _no_weights(directory: Path) -> RuntimeFault:
    others = sorted(directory.glob("*.safetensors"))
    if others:
        return InvalidArgument(
            f"directory '{directory}' has neither {SINGLE} nor {INDEX}, but {len(others)} other safetensors files",
            remedy=f"give the file itself, e.g. '{others[0]}'",
        )
    for pattern in PICKLE_PATTERNS:
        for path in sorted(directory.glob(pattern)):
            return refuse_pickle(path)
    return InvalidArgument(
        f"directory '{directory}' has a {CONFIG} and no weights: neither {SINGLE} nor {INDEX}",
        remedy="download the model's .safetensors files into it",
    )


def _open_index(path: Path, directory: Path, config: dict[str, Any]) -> MappedModel:
    index = directory / INDEX
    weight_map = read_json(index, unique_keys=True).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise MalformedFile(
            f"'{index}': weight_map is {type(weight_map).__name__}, expected names of tensors and files"
        )
    shards = sorted(set(weight_map.values()))
    _check_shards(directory, index, shards)
    mapped = {shard: MappedFile(directory / shard) for shard in shards}
    found = {shard: read_safetensors(file) for shard, file in mapped.items()}
    tensors: dict[str, tuple[TensorSpec, Extent]] = {}
    for name, shard in weight_map.items():
        if name not in found[shard]:
            raise MalformedFile(
                f"'{index}' says that tensor {name[:80]!r} is in {shard}, which holds {len(found[shard])} others",
                remedy="index and shards are of different models: download both again",
            )
        tensors[name] = found[shard][name]
    return _model(path, directory, config, list(mapped.values()), tensors)


def _check_shards(directory: Path, index: Path, shards: Sequence[str]) -> None:
    for shard in shards:
        if not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise MalformedFile(f"'{index}' names {shard[:80]!r}; a shard is a .safetensors file in the same directory")
    missing = [shard for shard in shards if not (directory / shard).exists()]
    if missing:
        raise MalformedFile(
            f"'{index}' names {len(shards)} shards, {len(missing)} are missing: {', '.join(missing[:4])}"
            + (" ..." if len(missing) > 4 else ""),
            remedy="download the missing shards into the same directory",
        )


def _model(
    path: Path,
    directory: Path,
    config: dict[str, Any],
    mapped: Sequence[MappedFile],
    tensors: dict[str, tuple[TensorSpec, Extent]],
) -> MappedModel:
    model = MappedModel(path, "hf", config, mapped, tensors)
    if (directory / GENERATION_CONFIG).exists():
        model.generation_config = read_json(directory / GENERATION_CONFIG)
    model.tokenizer_files = {name: directory / name for name in TOKENIZER_FILES if (directory / name).exists()}
    return model
