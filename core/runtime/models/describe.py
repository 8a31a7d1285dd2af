"""From the header of a model's files to its ModelSpec; an unknown architecture is refused first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.dtypes import TensorSpec
from runtime.errors import MalformedFile, Unsupported
from runtime.models.from_gguf import spec_from_gguf
from runtime.models.from_hf import spec_from_hf
from runtime.models.spec import Kind, ModelSpec, RopeParameters
from runtime.models.traits import ROWS, Architecture


def describe_model(kind: Kind, metadata: Mapping[str, Any], tensors: Mapping[str, TensorSpec]) -> ModelSpec:
    """The sizes and traits of a model.

    kind       "gguf" or "hf"
    metadata   GGUF key/values, or the parsed config.json
    tensors    name -> spec, as the files have them; presence of some decides traits (biases, tied embeddings)

    Raises Unsupported for an architecture that is not in the table, and MalformedFile for a header that lacks a size
    or contradicts itself. Whether every weight is there and has its shape is checked by `weight_source`.
    """
    row = find_architecture(kind, metadata)
    spec = spec_from_gguf(row, metadata, tensors) if kind == "gguf" else spec_from_hf(row, metadata, tensors)
    _check_sizes(spec)
    return spec


def find_architecture(kind: Kind, metadata: Mapping[str, Any]) -> Architecture:
    """The row of a model, by `general.architecture` or by `model_type`; raises Unsupported with what is known."""
    if kind == "gguf":
        name, field = metadata.get("general.architecture"), "general.architecture"
        known = {alias: row for row in ROWS for alias in row.gguf}
    else:
        name, field = metadata.get("model_type"), "model_type"
        known = {alias: row for row in ROWS for alias in row.hf}
    if not isinstance(name, str):
        raise MalformedFile(f"the model's metadata has no '{field}', so its architecture is unknown")
    row = known.get(name)
    if row is None:
        raise Unsupported(f"architecture '{name}' is not supported", remedy=f"supported: {', '.join(sorted(known))}")
    classes = metadata.get("architectures") if kind == "hf" else None
    if isinstance(classes, list) and classes and not set(classes) & set(row.hf_classes):
        raise Unsupported(
            f"{', '.join(map(str, classes))} is not supported for model type '{name}'",
            remedy=f"supported: {', '.join(row.hf_classes)}",
        )
    return row


def _check_sizes(spec: ModelSpec) -> None:
    if spec.num_heads % spec.num_kv_heads:
        raise MalformedFile(f"{spec.num_heads} query heads do not divide among {spec.num_kv_heads} key/value heads")
    for rope in spec.ropes.values():
        if rope.rotary_dim % 2 or not 0 < rope.rotary_dim <= spec.head_dim:
            raise MalformedFile(
                f"{rope.rotary_dim} rotated elements per head of {spec.head_dim}: it must be even and at most that"
            )
        if rope.theta <= 1:
            raise MalformedFile(f"rope base {rope.theta} must be above 1, or frequencies do not fall")
        _check_scaling(rope)


MIN_FACTOR = 1e-30
"""Of a rope scaling: frequencies, which are at most 1, stay numbers of float32 when it divides them."""


def _check_scaling(rope: RopeParameters) -> None:
    """What would make the formulas of rope.py divide by zero, or leave float32."""
    if rope.factor is not None and not MIN_FACTOR <= rope.factor <= 1 / MIN_FACTOR:
        raise MalformedFile(f"rope scaling factor {rope.factor} must be within {MIN_FACTOR:g} and {1 / MIN_FACTOR:g}")
    if rope.kind in ("linear", "dynamic", "llama3") and rope.factor is None:
        raise MalformedFile(f"rope scaling '{rope.kind}' needs a factor")
    if rope.kind == "dynamic" and rope.rotary_dim < 4:
        raise MalformedFile(
            f"rope scaling 'dynamic' needs at least 4 rotated elements, the model has {rope.rotary_dim}"
        )
    if rope.kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise MalformedFile(
            f"rope scaling: high_freq_factor {rope.high_freq_factor} must exceed low_freq_factor {rope.low_freq_factor}"
        )
    if rope.kind == "yarn" and not (rope.beta_fast > 0 and rope.beta_slow > 0):
        raise MalformedFile(f"rope scaling: beta_fast {rope.beta_fast} and beta_slow {rope.beta_slow} must be positive")
    if rope.kind in ("yarn", "longrope") and rope.original_max_position_embeddings < 2:
        raise MalformedFile(f"rope scaling '{rope.kind}' needs an original context of at least 2 tokens")
