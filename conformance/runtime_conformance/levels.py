"""Levels and profiles: what a backend must support to be called conformant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime.errors import InvalidArgument
from runtime.ops import CATALOGUE, Op
from runtime_conformance.case import Case

LEVELS = ("L0", "L1", "L2", "L3")
LEVEL_NAMES = {"L0": "device", "L1": "decode", "L2": "serve", "L3": "scale"}
_REQUIRED_WHERE = {
    "mul",
    "softcap",
    "layer_norm",
    "activation",
    "concat",
    "split",
    "convert",
    "moe_route",
    "moe_linear",
}
"""Operations that a dense decoder may do without: needed by other architectures, optional at their level."""
_OPTIONAL = {"quantize", "dequantize", "verify_draft", "penalize", "sample", "topk", "softmax"}
"""Operations that the host may do at no cost worth naming."""


@dataclass(frozen=True)
class Profile:
    """A promise beyond a level.

    weights   formats of weights that must be supported wherever a weight may be
    ops       operations that become required
    flags     what the rules of required operations must declare
    """

    name: str
    doc: str
    weights: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


PROFILES: Mapping[str, Profile] = {
    p.name: p
    for p in (
        Profile("Q-GGUF-core", "weights of common GGUF files", ("f32", "f16", "q4_0", "q8_0", "q4_k", "q6_k")),
        Profile(
            "Q-GGUF-full",
            "weights of every GGUF file of llama.cpp's own quantiser without importance grids",
            ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
        ),
        Profile("Q-MX", "weights in microscaling formats", ("mxfp4", "nvfp4", "f8_e4m3")),
        Profile("MoE", "mixture of experts", ops=("moe_route", "moe_linear")),
        Profile("sampling", "tokens are drawn on the device", ops=("penalize", "sample", "topk", "softmax")),
        Profile("deterministic", "the same bits in every run", flags=("deterministic",)),
        Profile("batch-invariant", "the same bits alone and in a batch", flags=("batch_invariant",)),
        Profile("capture", "steps can be captured and replayed", flags=("capturable",)),
    )
}


def profile(name: str) -> Profile:
    """The profile of that name; raises InvalidArgument."""
    if name not in PROFILES:
        raise InvalidArgument(f"there is no profile '{name}'; profiles are {', '.join(PROFILES)}")
    return PROFILES[name]


def level_of(op: Op) -> str:
    """The level at which an operation is tested."""
    if op.name in ("attention", "kv_write"):
        return "L1"
    return op.level


def is_required(case: Case, level: str, profiles: tuple[Profile, ...]) -> bool:
    """Whether a backend that claims `level` and `profiles` must support `case`."""
    op = CATALOGUE[case.op]
    if op.is_composite or LEVELS.index(level_of(op)) > LEVELS.index(level):
        return False
    if any(op.name in p.ops for p in profiles):
        return _formats_required(case, profiles)
    if op.name in _REQUIRED_WHERE or op.name in _OPTIONAL or op.family == "collective":
        return False  # collectives are required of the device's communicator, as nodes of a graph they are not
    return _formats_required(case, profiles) and _is_common(case)


def _formats_required(case: Case, profiles: tuple[Profile, ...]) -> bool:
    """Activations in f32 are required; weights in f32, and in the formats of the profiles."""
    weights = {"f32", *(w for p in profiles for w in p.weights)}
    for tensor in case.inputs.values():
        if tensor.role == "weight" and tensor.format not in weights:
            return False
        if tensor.role == "input" and tensor.format in ("f16", "bf16", "f64"):
            return False
    return True


def _is_common(case: Case) -> bool:
    """Variants that only some architectures have are optional: a manifest may leave them out."""
    a = case.attrs
    if case.op == "attention@1":
        rare = "sinks" in case.inputs or "alibi_slopes" in case.inputs or a.get("softcap") or a.get("window")
        common_head = a["head_dim"] in (64, 128)
        return bool(not rare and a.get("causal", True) and common_head)
    if case.op == "rope@1":
        return bool(a["head_dim"] in (64, 128) and a.get("scale", 1.0) == 1.0)
    if case.op == "glu@1":
        return bool(a["kind"] == "silu")
    return bool(case.op != "embed@1" or a.get("scale", 1.0) == 1.0)
