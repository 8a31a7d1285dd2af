"""What the native device can do, as a manifest."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backend import KVLayout, Manifest, Numerics, OneOf, Range, Rule
from runtime_cpu.buffers import GGML_TYPES
from runtime_cpu.compiler import OPERATIONS
from runtime_cpu.native import Library

KV_FORMATS = ("f16", "bf16", "f32", "q8_0")
BLOCK_SIZE = 64
"""Tokens of a KV block: with all heads of a layer it is a run of bytes long enough for the full read bandwidth."""
MAX_HEAD_DIM = 512
DECODED_FORMATS = (
    *("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "tq1_0", "tq2_0", "nvfp4"),
    *("f8_e4m3", "f8_e5m2", "f8_e4m3_g128"),
)
"""Weights in these are decoded at load and kept in f16 where that is exact, otherwise in f32."""
ACTIVATIONS = {0: "f32", 1: "bf16", 2: "i8/32", 3: "bf16"}
"""What each of the library's activation kinds rounds to."""

_PLAIN = Numerics(order="fixed")
_FLAGS = frozenset({"deterministic", "batch_invariant"})
_F32_PORTS = {
    "rms_norm": ("x", "y"),
    "layer_norm": ("x", "y"),
    "rope": ("x", "y"),
    "glu": ("gate", "up", "y"),
    "activation": ("x", "y"),
    "add": ("a", "b", "y"),
    "mul": ("a", "y"),
    "softcap": ("x", "y"),
    "gather_rows": ("x", "y"),
    "split": ("x",),
    "concat": ("x0",),
    "softmax": ("x", "y"),
    "topk": ("x",),
    "argmax": ("x",),
    "penalize": ("logits", "y"),
    "sample": ("logits",),
    "moe_route": ("logits",),
}
"""Tensors that must be f32. Gains and biases may have any format: they are decoded at load."""


def native_manifest(library: Library, device: int, name: str) -> Manifest:
    """Rules for exactly what the library computes with the instruction set of `device`."""
    rules = [*_products(library, device), *_attention(library, device)]
    for op, ports in _F32_PORTS.items():
        rules.append(Rule(f"{op}@1", tuple(OneOf(f"{p}.format", ("f32",)) for p in ports), _PLAIN, _FLAGS))
    tables = tuple(f for f in (*GGML_TYPES, *DECODED_FORMATS))
    rules.append(Rule("embed@1", (OneOf("weight.format", tables),), _PLAIN, _FLAGS))
    formats = OneOf("format", ("f32", "f16", "bf16"))
    rules.append(Rule("convert@1", (OneOf("x.format", ("f32",)), formats), _PLAIN, _FLAGS))
    layouts = (KVLayout(block_sizes=(BLOCK_SIZE,), formats=KV_FORMATS),)
    assert {r.op for r in rules} == set(OPERATIONS), "every operation with a native form has a rule"
    return Manifest(name, rules=tuple(rules), kv_layouts=layouts, memory_pools=("host",), executes_regions=True)


def manifest_of(library: Library, isa: str, name: str) -> Manifest:
    """The manifest of a device with that instruction set, without opening one for work."""
    device = library.rt_device_open(library.isas.index(isa), 1)
    try:
        return native_manifest(library, device, name)
    finally:
        library.rt_device_close(device)


def packable_formats(library: Library, device: int) -> tuple[str, ...]:
    """Formats of weights that have kernels."""
    return tuple(n for n, number in GGML_TYPES.items() if library.rt_device_packed_bytes(device, number, 16, 256) > 0)


def _products(library: Library, device: int) -> list[Rule]:
    """`linear` and `moe_linear`, by what they round their activations to."""
    by_activation: dict[str, list[str]] = {}
    packable = packable_formats(library, device)
    for name in packable:
        kind = library.rt_device_activation_kind(device, GGML_TYPES[name])
        by_activation.setdefault(ACTIVATIONS[kind], []).append(name)
    if "f16" in packable:  # and f32, whose activations are those of f16
        decoded = (*DECODED_FORMATS, *(n for n in GGML_TYPES if n not in packable))
        kind = library.rt_device_activation_kind(device, GGML_TYPES["f16"])
        by_activation[ACTIVATIONS[kind]] += decoded
    rules = []
    for activation, formats in by_activation.items():
        when = (OneOf("x.format", ("f32",)), OneOf("weight.format", tuple(formats)))
        numerics = Numerics(activation=activation, order="fixed")
        rules += [Rule(f"{op}@1", when, numerics, _FLAGS) for op in ("linear", "moe_linear")]
    return rules


def _attention(library: Library, device: int) -> list[Rule]:
    """Operations on KV caches. With bf16 dot products, queries and probabilities are rounded to bf16."""
    size = Range("C", 32, None, 32)
    dim = Range("D", 1, MAX_HEAD_DIM)

    def cache(formats: Sequence[str]) -> tuple[OneOf | Range, ...]:
        return (OneOf("kv.format", tuple(formats)), size, dim)

    rounded = Numerics(activation="bf16", probability="bf16", order="fixed")
    rules = []
    queries = OneOf("q.format", ("f32",))
    if library.rt_device_dots_bf16(device):
        rules.append(Rule("attention@1", (queries, *cache(("bf16",))), rounded, _FLAGS))
        rules.append(Rule("attention@1", (queries, *cache([f for f in KV_FORMATS if f != "bf16"])), _PLAIN, _FLAGS))
    else:
        rules.append(Rule("attention@1", (queries, *cache(KV_FORMATS)), _PLAIN, _FLAGS))
    keys = (OneOf("k.format", ("f32",)), OneOf("v.format", ("f32",)))
    rules.append(Rule("kv_write@1", (*keys, *cache(KV_FORMATS)), _PLAIN, _FLAGS))
    for op in ("kv_copy_blocks", "kv_export"):
        rules.append(Rule(f"{op}@1", cache(KV_FORMATS), _PLAIN, _FLAGS))
    rules.append(Rule("kv_import@1", (OneOf("data.format", ("f32",)), *cache(KV_FORMATS)), _PLAIN, _FLAGS))
    return rules
