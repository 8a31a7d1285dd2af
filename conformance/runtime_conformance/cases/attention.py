"""Space of attention: ragged steps, grouped heads, windows, soft caps, sinks, ALiBi."""

from __future__ import annotations

from math import sqrt

from runtime.backend import Manifest
from runtime.dtypes import FORMATS
from runtime_conformance.case import Case, Tensor
from runtime_conformance.cases.batches import make_batch
from runtime_conformance.cases.space import FLOAT_FORMATS, Params, Space

_HEADS = ((4, 2), (4, 4), (8, 1), (6, 2), (1, 1))


def _attention(p: Params) -> Case | None:
    heads, kv_heads = p.get("heads", (p.get("num_heads", 4), p.get("num_kv_heads", 2)))
    d, kind = p["head_dim"], p["kind"]
    kv_format = p.get("kv.format", "f16")
    if heads % kv_heads or d % FORMATS[kv_format].group_size:
        return None
    if kind == "exact" and (p["softcap"] or d < 16 or kv_format in ("f8_e4m3", "f8_e5m2", "q8_0")):
        return None
    if p["has.alibi_slopes"] and p["softcap"]:
        return None
    batch = make_batch(p["batch"], p["C"])
    if not p["causal"] and p["window"]:
        return None
    q_data = {"exact": ("attention_query",), "outlier": ("outlier",)}.get(kind, ("normal",))
    inputs = {
        "q": Tensor(p.get("q.format", "f32"), (batch.num_tokens, heads * d), data=q_data),
        "kv": Tensor(
            kv_format,
            (2, batch.num_blocks, p["C"], kv_heads, d),
            "state",
            ({"exact": "kv_exact", "peaked": "kv_peaked"}.get(kind, "kv_normal"), _garbage(kv_format)),
            "kv",
        ),
        **batch.tensors(),
    }
    if p["has.sinks"]:
        sinks = ("constant", -2000.0) if kind == "exact" else ("normal", 1.0, 1.0)
        inputs["sinks"] = Tensor("f32", (heads,), data=sinks)
    if p["has.alibi_slopes"]:
        slopes = tuple(2.0 ** -(8 * (h + 1) // heads) for h in range(heads))
        inputs["alibi_slopes"] = Tensor("f32", (heads,), data=("values", *slopes))
    attrs = {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": d,
        "scale": 1.0 if kind == "exact" else 1 / sqrt(d),
        "window": p["window"],
        "softcap": p["softcap"],
        "causal": p["causal"],
    }
    return Case("attention@1", inputs, attrs, kind, note=str(p.get("model", "")))


def _garbage(kv_format: str) -> float:
    return 100.0 if kv_format in ("f8_e4m3", "q8_0") else 1000.0


def kv_formats(manifest: Manifest) -> tuple[str, ...]:
    """Formats of the caches that the backend offers, its favourite first."""
    formats = dict.fromkeys(f for layout in manifest.kv_layouts for f in layout.formats)
    return tuple(formats) or ("f16",)


def block_sizes(manifest: Manifest) -> tuple[int, ...]:
    """Block sizes of the caches that the backend offers, its favourite first."""
    sizes = dict.fromkeys(s for layout in manifest.kv_layouts for s in layout.block_sizes)
    return tuple(sizes) or (16,)


def attention_space(manifest: Manifest) -> Space:
    """Over the cache layouts of `manifest`."""
    base = {
        "window": 0,
        "softcap": 0.0,
        "causal": True,
        "has.sinks": False,
        "has.alibi_slopes": False,
        "C": block_sizes(manifest)[0],
        "kv.format": kv_formats(manifest)[0],
    }
    return Space(
        "attention@1",
        {
            "batch": ("mixed", "decode", "prefill", "borders", "chunk", "decode_batch", "pause", "long"),
            "heads": _HEADS,
            "head_dim": (64, 128, 80, 32, 96, 256),
            "C": block_sizes(manifest),
            "kv.format": kv_formats(manifest),
            "q.format": FLOAT_FORMATS,
            "window": (0, 8, 17),
            "softcap": (0.0, 30.0),
            "causal": (True, True, False),
            "has.sinks": (False, True),
            "has.alibi_slopes": (False, False, True),
            "kind": ("peaked", "exact", "normal"),
        },
        _attention,
        models=(
            base | {"batch": "mixed", "heads": (32, 8), "head_dim": 64, "kind": "peaked", "model": "llama-3.2-1b"},
            base | {"batch": "decode", "heads": (14, 2), "head_dim": 64, "kind": "exact", "model": "qwen2.5-0.5b"},
            base
            | {
                "batch": "long",
                "heads": (8, 4),
                "head_dim": 256,
                "window": 64,
                "softcap": 50.0,
                "kind": "peaked",
                "model": "gemma-2-2b",
            },
            base
            | {
                "batch": "mixed",
                "heads": (64, 8),
                "head_dim": 64,
                "window": 17,
                "has.sinks": True,
                "kind": "peaked",
                "model": "gpt-oss-20b",
            },
        ),
    )
