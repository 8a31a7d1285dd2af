"""What the kernels can do on a device with given settings, as rules; no torch is needed to read them."""

from __future__ import annotations

from runtime.backend import KVLayout, Manifest, Numerics, OneOf, Range, Rule
from runtime_torch.planes import FLOAT8, LAYOUTS
from runtime_torch.settings import Settings

MAX_HEAD_DIM = 256
MAX_ROW = 1 << 16
"""Elements of a row that one program holds: norms, and a row of keys or values."""
DENSE = ("f32", "f16", "bf16")
FP8 = ("f8_e4m3", "f8_e5m2")
"""Weights without scales of their own, read as they are where the chip converts them; exact in f16."""
KV_FORMATS = ("f16", "bf16", "f32")
KINDS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "tanh", "quick_gelu")
GLU_KINDS = ("silu", "gelu", "gelu_tanh", "swiglu_oai")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send", "recv")

F32 = Numerics(activation="f32", accumulate="f32", probability="f32", output="f32", order="fixed")


Conditions = tuple["OneOf | Range", ...]


def _f32(*ports: str) -> tuple[OneOf, ...]:
    return tuple(OneOf(f"{port}.format", ("f32",)) for port in ports)


def _optional(rule: Rule, *ports: str) -> list[Rule]:
    """The rule without, and with, each of the optional ports in f32."""
    rules = [rule]
    for port in ports:
        absent, present = OneOf(f"has.{port}", (False,)), OneOf(f"{port}.format", ("f32",))
        rules = [
            Rule(r.op, (*r.when, condition), r.numerics, r.flags) for r in rules for condition in (absent, present)
        ]
    return rules


def product_numerics(settings: Settings, fmt: str, *, is_grouped: bool = False) -> Numerics:
    """What a product with weights in `fmt` computes with.

    On tensor cores activations are rounded to bf16 where they meet bf16, else to f16, under a scale of their row where
    it needs one. Few rows are computed in float32: better than declared.
    """
    if settings.precision == "f32" or fmt == "f32":
        return F32
    if fmt in ("f16", "bf16"):
        return Numerics(activation=fmt, output="f32" if settings.wide_output or is_grouped else fmt, order="fixed")
    return Numerics(activation="f16", order="fixed")


def cache_numerics(settings: Settings, fmt: str) -> Numerics:
    """What attention over a cache in `fmt` computes with: queries and probabilities in the format of the cache."""
    if settings.precision == "f32" or fmt == "f32":
        return F32
    return Numerics(activation=fmt, probability=fmt, order="fixed")


def make_manifest(settings: Settings) -> Manifest:
    """All rules, the collectives and cache layouts of a device with these settings."""
    flags = frozenset({"deterministic", "capturable"})
    by_row = flags | {"batch_invariant"}
    rules = [
        *_products(settings, flags),
        *_ffn(settings, flags),
        *_attention(settings, flags, by_row),
        *_rows(flags, by_row),
    ]
    rules += _experts(settings, flags)
    return Manifest(
        settings.backend,
        rules=tuple(rules),
        kv_layouts=(KVLayout(block_sizes=(16, 32, 64, 8, 128), formats=KV_FORMATS),),
        collectives=COLLECTIVES,
        executes_regions=True,
    )


def _weights(settings: Settings) -> dict[str, int]:
    """Format -> what K must be a multiple of."""
    dense = (*DENSE, *FP8) if settings.fp8 else DENSE
    return {**dict.fromkeys(dense, 1), **{name: LAYOUTS[name].block_elements for name in _blocks(settings)}}


def _blocks(settings: Settings) -> tuple[str, ...]:
    return tuple(name for name in LAYOUTS if settings.fp8 or name not in FLOAT8)


def _products(settings: Settings, flags: frozenset[str]) -> list[Rule]:
    rules = []
    for fmt, step in _weights(settings).items():
        when: Conditions = (OneOf("weight.format", (fmt,)), Range("K", 1, None, step))
        linear = Rule("linear@1", (*when, *_f32("x")), product_numerics(settings, fmt), flags)
        rules += _optional(linear, "bias")
        rules.append(Rule("embed@1", when, F32, flags | {"batch_invariant"}))
    return rules


def _mixes(settings: Settings) -> list[tuple[tuple[str, ...], int, Numerics]]:
    """Formats that the weights of one composite may mix, what K must be a multiple of, and the numerics."""
    blocks = _blocks(settings)
    small = tuple(name for name in blocks if LAYOUTS[name].block_elements == 32)
    mixes = [((fmt,), 1, product_numerics(settings, fmt)) for fmt in DENSE]
    return [
        *mixes,
        (small, 32, product_numerics(settings, "q8_0")),
        *(((name,), 128, product_numerics(settings, name)) for name in FLOAT8 if settings.fp8),
        (blocks, 256, product_numerics(settings, "q4_k")),
    ]


def _ffn(settings: Settings, flags: frozenset[str]) -> list[Rule]:
    rules = []
    parts = ("gate", "up", "down")
    for formats, step, numerics in _mixes(settings):
        same = tuple(OneOf(f"{part}_weight.format", formats) for part in parts)
        sizes = (Range("K", 1, None, step), Range("I", 1, None, step))
        ffn = Rule("swiglu_ffn@1", (*_f32("x"), *same, *sizes, OneOf("kind", GLU_KINDS)), numerics, flags)
        rules += _together(ffn, tuple(f"{part}_bias" for part in parts))
    return rules


def _together(rule: Rule, ports: tuple[str, ...]) -> list[Rule]:
    """The rule without all of the optional ports, and with all of them in f32."""
    absent = tuple(OneOf(f"has.{port}", (False,)) for port in ports)
    return [Rule(rule.op, (*rule.when, *c), rule.numerics, rule.flags) for c in (absent, _f32(*ports))]


def _qkv(settings: Settings, flags: frozenset[str], cache: OneOf) -> list[Rule]:
    rules = []
    for formats, step, numerics in _mixes(settings):
        same = tuple(OneOf(f"{part}_weight.format", formats) for part in "qkv")
        when: Conditions = (*_f32("x"), *same, Range("K", 1, None, step), Range("head_dim", 2, MAX_HEAD_DIM), cache)
        rule = Rule("qkv_rope_write@1", when, numerics, flags)
        for with_bias in _together(rule, ("q_bias", "k_bias", "v_bias")):
            rules += _together(with_bias, ("q_norm", "k_norm"))
    return rules


def _attention(settings: Settings, flags: frozenset[str], by_row: frozenset[str]) -> list[Rule]:
    cache = OneOf("kv.format", KV_FORMATS)
    width = Range("N", 1, MAX_ROW)
    rules = [
        Rule("rope@1", (*_f32("x", "inv_freq"), Range("head_dim", 2, MAX_ROW)), F32, by_row),
        Rule("kv_write@1", (*_f32("k", "v"), cache, width), F32, by_row),
        Rule("kv_copy_blocks@1", (cache,), F32, flags),
        Rule("kv_export@1", (cache,), F32, flags),
        Rule("kv_import@1", (*_f32("data"), cache), F32, flags),
        *_qkv(settings, flags, cache),
    ]
    for fmt in KV_FORMATS:
        when: Conditions = (*_f32("q"), OneOf("kv.format", (fmt,)), Range("head_dim", 1, MAX_HEAD_DIM))
        rules.append(Rule("attention@1", when, cache_numerics(settings, fmt), flags))
    return rules


def _experts(settings: Settings, flags: frozenset[str]) -> list[Rule]:
    rules = _optional(Rule("moe_route@1", _f32("logits"), F32, flags), "bias")
    for fmt, step in _weights(settings).items():
        when: Conditions = (*_f32("x"), OneOf("weight.format", (fmt,)), Range("K", 1, None, step))
        numerics = product_numerics(settings, fmt, is_grouped=True)
        rules += _optional(Rule("moe_linear@1", when, numerics, flags), "bias", "expert_weights")
    return rules


def _rows(flags: frozenset[str], by_row: frozenset[str]) -> list[Rule]:
    return [
        Rule("rms_norm@1", (*_f32("x", "weight"), Range("D", 1, MAX_ROW)), F32, by_row),
        *_optional(Rule("layer_norm@1", (*_f32("x", "weight"), Range("K", 1, MAX_ROW)), F32, by_row), "bias"),
        Rule("glu@1", (*_f32("gate", "up"), OneOf("kind", GLU_KINDS)), F32, by_row),
        Rule("activation@1", (*_f32("x"), OneOf("kind", KINDS)), F32, by_row),
        Rule("add@1", _f32("a", "b"), F32, by_row),
        *_optional(Rule("mul@1", _f32("a"), F32, by_row), "b"),
        Rule("softcap@1", _f32("x"), F32, by_row),
        Rule("softmax@1", _f32("x"), F32, flags),
        Rule("topk@1", _f32("x"), F32, by_row),
        Rule("argmax@1", _f32("x"), F32, by_row),
        Rule("gather_rows@1", _f32("x"), F32, by_row),
        Rule("concat@1", _f32("y"), F32, by_row),
        Rule("split@1", _f32("x"), F32, by_row),
        Rule("convert@1", (OneOf("x.format", DENSE), OneOf("format", DENSE)), F32, by_row),
        *_optional(Rule("penalize@1", _f32("logits"), F32, by_row), "bias_values"),
        Rule("sample@1", _f32("logits"), F32, by_row),
    ]
