"""From a path to the three things an engine needs of it: the file, what the model is, and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.engine.background import Background
from runtime.engine.sampling_params import SamplingParams
from runtime.errors import InvalidArgument
from runtime.formats import ModelFile, open_model
from runtime.models import ModelSpec, describe_model
from runtime.models.demo import demo_model_path
from runtime.tokenizer import Tokenizer

_GGUF_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
}
_HF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


@dataclass(frozen=True)
class OpenedModel:
    """An opened model: nothing of its weights has been read."""

    file: ModelFile
    spec: ModelSpec
    background: Background[Tokenizer]
    """The tokenizer, built while weights are loaded: for a large vocabulary it takes as long. It is started when there
    is something to wait for, since until then it would only share the interpreter lock."""
    name: str
    default_sampling: SamplingParams

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, as soon as it is built; raises what its building raised."""
        return self.background.result()


def open_for_engine(path: str | Path | None) -> OpenedModel:
    """Open a model by its headers; None is the packaged demo model."""
    file = open_model(demo_model_path() if path is None else path)
    try:
        spec = describe_model(file.kind, file.metadata, file.tensors)
        name = "demo" if path is None else Path(path).name or str(path)
        return OpenedModel(file, spec, Background(lambda: tokenizer_of(file)), name, default_sampling(file))
    except BaseException:
        file.close()
        raise


def tokenizer_of(file: ModelFile) -> Tokenizer:
    """The tokenizer that belongs to an opened model."""
    return Tokenizer.from_gguf(file.metadata) if file.kind == "gguf" else Tokenizer.from_hf_directory(file.path)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a GGUF file, which need not hold weights, or of a directory with tokenizer.json."""
    if Path(path).is_dir():
        return Tokenizer.from_hf_directory(path)
    with open_model(path) as file:
        return tokenizer_of(file)


def default_sampling(file: ModelFile) -> SamplingParams:
    """The sampling settings that the model's makers recommend: generation_config.json or general.sampling.*."""
    source: Mapping[str, Any] = file.metadata if file.kind == "gguf" else file.generation_config
    if file.kind == "gguf":
        chosen = {ours: source[theirs] for theirs, ours in _GGUF_SAMPLING.items() if theirs in source}
    elif source.get("do_sample") is False:
        chosen = {"temperature": 0.0}
    else:
        chosen = {name: source[name] for name in _HF_SAMPLING if source.get(name) is not None}
    try:
        return SamplingParams(**chosen)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"{file.path}: the model's own sampling settings cannot be used: {error.message}"
        ) from error
