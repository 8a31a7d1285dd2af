"""What the kernels can do, as rules; the same for every device that passes the probe."""

from __future__ import annotations

from runtime.backend import KVLayout, Manifest, Numerics, OneOf, Range, Rule

NAME = "opencl"
MAX_HEAD_DIM = 256
"""The query of a head and its accumulators are kept close to the processing elements, and were tested up to here."""
WEIGHT_GROUPS = {"f32": 1, "f16": 1, "bf16": 1, "q8_0": 32, "q4_0": 32, "q4_k": 256, "q6_k": 256}
"""Formats that kernels decode, and the elements of their blocks: K is a multiple of them."""
KV_FORMATS = ("f16", "f32")
CONVERTED = ("f32", "f16", "bf16")
KINDS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "quick_gelu")
GLU_KINDS = ("silu", "gelu", "gelu_tanh", "swiglu_oai")

F32 = Numerics(activation="f32", accumulate="f32", probability="f32", output="f32", order="fixed")
FIXED = frozenset({"deterministic"})
BY_ROW = frozenset({"deterministic", "batch_invariant"})
"""A row is computed in one way, whatever else is in the step. linear is not of these: few and many tokens have
kernels with different orders of summation."""


def _f32(*ports: str) -> tuple[OneOf, ...]:
    return tuple(OneOf(f"{port}.format", ("f32",)) for port in ports)


def _with_weight(op: str, flags: frozenset[str], *plain: str) -> list[Rule]:
    return [
        Rule(op, (OneOf("weight.format", (fmt,)), Range("K", 1, None, group), *_f32(*plain)), F32, flags)
        for fmt, group in WEIGHT_GROUPS.items()
    ]


def _linear() -> list[Rule]:
    rules = _with_weight("linear@1", FIXED, "x")
    without = [Rule(r.op, (*r.when, OneOf("has.bias", (False,))), r.numerics, r.flags) for r in rules]
    with_bias = [Rule(r.op, (*r.when, *_f32("bias")), r.numerics, r.flags) for r in rules]
    return [*without, *with_bias]


def make_manifest() -> Manifest:
    """All rules. Composites have none: they are expanded, and all of their parts are here."""
    heads = Range("head_dim", 1, MAX_HEAD_DIM)
    cache = OneOf("kv.format", KV_FORMATS)
    rules = [
        *_with_weight("embed@1", BY_ROW),
        *_linear(),
        Rule("rms_norm@1", _f32("x", "weight"), F32, BY_ROW),
        Rule("layer_norm@1", (*_f32("x", "weight"), OneOf("has.bias", (False,))), F32, BY_ROW),
        Rule("layer_norm@1", _f32("x", "weight", "bias"), F32, BY_ROW),
        Rule("rope@1", _f32("x", "inv_freq"), F32, BY_ROW),
        Rule("kv_write@1", (*_f32("k", "v"), cache), F32, BY_ROW),
        *(Rule(f"kv_{what}@1", (cache,), F32, BY_ROW) for what in ("copy_blocks", "export", "import")),
        Rule("attention@1", (*_f32("q"), cache, heads), F32, BY_ROW),
        Rule("glu@1", (*_f32("gate", "up"), OneOf("kind", GLU_KINDS)), F32, BY_ROW),
        Rule("activation@1", (*_f32("x"), OneOf("kind", KINDS)), F32, BY_ROW),
        Rule("add@1", _f32("a", "b"), F32, BY_ROW),
        Rule("mul@1", (*_f32("a"), OneOf("has.b", (False,))), F32, BY_ROW),
        Rule("mul@1", _f32("a", "b"), F32, BY_ROW),
        Rule("softcap@1", _f32("x"), F32, BY_ROW),
        Rule("softmax@1", _f32("x"), F32, BY_ROW),
        Rule("argmax@1", _f32("x"), F32, BY_ROW),
        Rule("gather_rows@1", _f32("x"), F32, BY_ROW),
        Rule("concat@1", _f32("y"), F32, BY_ROW),
        Rule("split@1", _f32("x"), F32, BY_ROW),
        Rule("convert@1", (OneOf("x.format", CONVERTED), OneOf("format", CONVERTED)), F32, BY_ROW),
    ]
    return Manifest(
        NAME,
        rules=tuple(rules),
        kv_layouts=(KVLayout(block_sizes=(16, 32, 64, 8), formats=KV_FORMATS),),
        executes_regions=True,
    )
