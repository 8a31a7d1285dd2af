"""What a model's header says, gathered as plain data: also for models that cannot run here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from runtime.dtypes import FORMATS
from runtime.engine.files import tokenizer_of
from runtime.errors import InvalidArgument, RuntimeFault
from runtime.formats import LazyArray, ModelFile
from runtime.models import ModelSpec, describe_model, kv_bytes_per_token, parameter_count, weight_source
from runtime.tokenizer import Tokenizer

T = TypeVar("T")
KV_FORMATS = ("f32", "f16", "q8_0")

_ABOUT = {
    "name": ("general.name", "_name_or_path"),
    "organization": ("general.organization",),
    "size_label": ("general.size_label",),
    "license": ("general.license", "license"),
    "description": ("general.description", "description"),
    "url": ("general.url", "general.source.url"),
}
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "max_model_len",
    "rms_norm_eps",
)
# What a header of an unknown architecture calls the same sizes: GGUF's keys after the architecture, and config.json's.
_GENERIC = {
    "hidden_size": ("embedding_length", "hidden_size"),
    "intermediate_size": ("feed_forward_length", "intermediate_size"),
    "num_layers": ("block_count", "num_hidden_layers"),
    "num_heads": ("attention.head_count", "num_attention_heads"),
    "num_kv_heads": ("attention.head_count_kv", "num_key_value_heads"),
    "head_dim": ("attention.key_length", "head_dim"),
    "vocab_size": ("vocab_size", "vocab_size"),
    "max_model_len": ("context_length", "max_position_embeddings"),
}


@dataclass
class ModelFacts:
    """Everything that `inspect` tells; what a file does not say is absent, and `refusals` say why it cannot run."""

    path: str
    kind: str
    about: dict[str, Any]
    architecture: str | None
    num_parameters: int
    weights_bytes: int
    formats: list[dict[str, Any]]
    files: list[dict[str, Any]]
    sizes: dict[str, Any] = field(default_factory=dict)
    traits: dict[str, Any] = field(default_factory=dict)
    kv_bytes_per_token: dict[str, int] = field(default_factory=dict)
    tokenizer: dict[str, Any] | None = None
    refusals: list[RuntimeFault] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The facts as plain data."""
        return {**vars(self), "refusals": [error.to_json() for error in self.refusals]}


def gather_facts(file: ModelFile) -> ModelFacts:
    """Read the header of an opened model; whatever makes the model unusable is kept as a refusal."""
    facts = ModelFacts(
        path=str(file.path),
        kind=file.kind,
        about=_about(file.metadata),
        architecture=_architecture(file),
        num_parameters=sum(prod(spec.resolve({})) for spec in file.tensors.values()),
        weights_bytes=file.nbytes,
        formats=_formats(file),
        files=[{"path": str(path), "bytes": Path(path).stat().st_size} for path in file.files],
    )
    if not file.tensors:
        facts.refusals.append(_without_weights(file))
    spec = _try(facts, lambda: describe_model(file.kind, file.metadata, file.tensors))
    if spec is None:
        facts.sizes = _generic_sizes(file, facts.architecture)
    else:
        _add_spec(facts, spec)
    tokenizer = _try(facts, lambda: tokenizer_of(file))
    if tokenizer is not None:
        facts.tokenizer = describe_tokenizer(tokenizer)
    return facts


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Kind, size, special tokens and the lengths of the chat templates."""
    return {
        "kind": tokenizer.model,
        "vocab_size": tokenizer.vocab_size,
        "bos": _token(tokenizer, tokenizer.bos_token_id),
        "eos": _token(tokenizer, tokenizer.eos_token_id),
        "adds_bos": tokenizer.adds_bos,
        "adds_eos": tokenizer.adds_eos,
        "end_of_generation": [_token(tokenizer, i) for i in sorted(tokenizer.eos_token_ids)],
        "num_special": len(tokenizer.special_ids),
        "chat_templates": {name: len(source) for name, source in sorted(tokenizer.chat_templates.items())},
    }


def plain_metadata(value: Any, limit: int = 8) -> Any:
    """A metadata value as plain data; of a longer array the first `limit` elements and a note of its length."""
    if isinstance(value, Mapping):
        return {str(key): plain_metadata(item, limit) for key, item in value.items()}
    if isinstance(value, (LazyArray, list, tuple)):
        head = [plain_metadata(item, limit) for item in value[:limit]]
        return head if len(value) <= limit else [*head, f"... {len(value)} elements"]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value


def _without_weights(file: ModelFile) -> RuntimeFault:
    return InvalidArgument(
        f"'{file.path}' holds no weights, so it cannot run", remedy="its vocabulary can be used: runtime tokenize"
    )


def _try(facts: ModelFacts, action: Callable[[], T]) -> T | None:
    try:
        return action()
    except RuntimeFault as error:
        facts.refusals.append(error)
        return None


def _add_spec(facts: ModelFacts, spec: ModelSpec) -> None:
    facts.sizes = {name: getattr(spec, name) for name in _SIZES}
    facts.traits = _traits(spec)
    head_dim = spec.head_dim
    facts.kv_bytes_per_token = {
        name: kv_bytes_per_token(spec, FORMATS[name]) for name in KV_FORMATS if head_dim % FORMATS[name].group_size == 0
    }
    if spec.tensors and _try(facts, lambda: weight_source(spec)) is not None:
        facts.num_parameters = parameter_count(spec)


def _traits(spec: ModelSpec) -> dict[str, Any]:
    traits: dict[str, Any] = {"ropes": {}}
    for name, rope in spec.ropes.items():
        told: dict[str, Any] = {"kind": rope.kind, "theta": rope.theta, "rotary_dim": rope.rotary_dim}
        if rope.kind != "default":
            told |= {
                "factor": rope.factor,
                "original_max_position_embeddings": rope.original_max_position_embeddings,
            }
        traits["ropes"][name] = told
    windows = sorted({layer.window for layer in spec.layers if layer.window})
    if windows:
        traits["sliding_window"] = {
            "window": windows[0] if len(windows) == 1 else windows,
            "num_layers": sum(1 for layer in spec.layers if layer.window),
        }
    if spec.experts is not None:
        traits["experts"] = {
            "count": spec.experts.count,
            "top_k": spec.experts.top_k,
            "intermediate_size": spec.experts.intermediate_size,
            "shared_intermediate_size": spec.experts.shared_intermediate_size,
            "num_layers": sum(1 for layer in spec.layers if layer.sparse),
        }
    flags = ("qkv_bias", "o_bias", "mlp_bias", "qk_norm", "post_norms", "sinks", "tie_word_embeddings")
    traits["flags"] = [name for name in flags if getattr(spec, name)]
    traits["activation"] = spec.activation
    for name in ("attention_softcap", "logits_softcap"):
        if getattr(spec, name):
            traits[name] = getattr(spec, name)
    return traits


def _architecture(file: ModelFile) -> str | None:
    key = "general.architecture" if file.kind == "gguf" else "model_type"
    value = file.metadata.get(key)
    return value if isinstance(value, str) else None


def _about(metadata: Mapping[str, Any]) -> dict[str, Any]:
    about = {}
    for ours, keys in _ABOUT.items():
        value = next((metadata[key] for key in keys if isinstance(metadata.get(key), str) and metadata[key]), None)
        if value is not None:
            about[ours] = value
    return about


def _generic_sizes(file: ModelFile, architecture: str | None) -> dict[str, Any]:
    sizes = {}
    for ours, (gguf_key, hf_key) in _GENERIC.items():
        value = file.metadata.get(f"{architecture}.{gguf_key}" if file.kind == "gguf" else hf_key)
        if isinstance(value, int) and not isinstance(value, bool):
            sizes[ours] = value
    return sizes


def _formats(file: ModelFile) -> list[dict[str, Any]]:
    """One entry per weight format, the largest first."""
    found: dict[str, dict[str, Any]] = {}
    for spec in file.tensors.values():
        entry = found.setdefault(
            spec.format.name, {"format": spec.format.name, "num_tensors": 0, "num_parameters": 0, "bytes": 0}
        )
        entry["num_tensors"] += 1
        entry["num_parameters"] += prod(spec.resolve({}))
        entry["bytes"] += spec.nbytes()
    return sorted(found.values(), key=lambda entry: -entry["bytes"])


def _token(tokenizer: Tokenizer, token_id: int | None) -> dict[str, Any] | None:
    return None if token_id is None else {"id": token_id, "text": tokenizer.token_text(token_id)}


def shape_text(shape: Sequence[Any]) -> str:
    """A shape, outermost dimension first: 4096 x 14336."""
    return " x ".join(str(size) for size in shape) or "scalar"
