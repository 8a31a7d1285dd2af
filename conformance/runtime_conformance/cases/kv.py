"""Spaces of the KV cache as data: write, copy, export, import."""

from __future__ import annotations

from runtime.backend import Manifest
from runtime.dtypes import FORMATS
from runtime_conformance.case import Case, Tensor
from runtime_conformance.cases.attention import block_sizes, kv_formats
from runtime_conformance.cases.batches import make_batch
from runtime_conformance.cases.space import FLOAT_FORMATS, Params, Space


def _cache(p: Params, num_blocks: int) -> Tensor | None:
    fmt = p.get("kv.format", "f16")
    if p["D"] % FORMATS[fmt].group_size:
        return None
    return Tensor(fmt, (2, num_blocks, p["C"], p["H"], p["D"]), "state", ("normal",), "kv")


def _write(p: Params) -> Case | None:
    batch = make_batch(p["batch"], p["C"])
    cache = _cache(p, batch.num_blocks)
    if cache is None:
        return None
    slots = list(batch.slot_mapping)
    if p["skip"]:
        slots[::3] = [-1] * len(slots[::3])
    row = Tensor(p.get("k.format", "f32"), (len(slots), p["H"] * p["D"]))
    inputs = {
        "kv": cache,
        "k": row,
        "v": row,
        "slot_mapping": Tensor("i32", (len(slots),), data=("values", *slots)),
    }
    return Case("kv_write@1", inputs, {}, "normal")


def _copy(p: Params) -> Case | None:
    count = p["count"]
    cache = _cache(p, 2 * count + 3)
    if cache is None:
        return None
    inputs = {
        "kv": cache,
        "source_blocks": Tensor("i32", (count,), data=("values", *range(2 * count, 0, -2))),
        "target_blocks": Tensor("i32", (count,), data=("values", *range(1, 2 * count, 2))),
    }
    return Case("kv_copy_blocks@1", inputs, {}, "exact")


def _export(p: Params) -> Case | None:
    cache = _cache(p, p["count"] + 3)
    if cache is None:
        return None
    blocks = [(3 * i + 2) % (p["count"] + 3) for i in range(p["count"])] if p["count"] % 3 else list(range(p["count"]))
    inputs = {"kv": cache, "block_ids": Tensor("i32", (p["count"],), data=("values", *blocks))}
    return Case("kv_export@1", inputs, {}, "exact")


def _import(p: Params) -> Case | None:
    cache = _cache(p, p["count"] + 3)
    if cache is None:
        return None
    blocks = [p["count"] + 2 - i for i in range(p["count"])]
    inputs = {
        "kv": cache,
        "data": Tensor("f32", (2, p["count"], p["C"], p["H"], p["D"])),
        "block_ids": Tensor("i32", (p["count"],), data=("values", *blocks)),
    }
    return Case("kv_import@1", inputs, {}, "normal")


def kv_spaces(manifest: Manifest) -> tuple[Space, ...]:
    """Over the cache layouts of `manifest`."""
    cache = {
        "C": block_sizes(manifest),
        "kv.format": kv_formats(manifest),
        "H": (2, 1, 8),
        "D": (64, 32, 128, 80),
    }
    return (
        Space(
            "kv_write@1",
            cache
            | {
                "batch": ("mixed", "borders", "decode", "prefill", "chunk"),
                "skip": (False, True),
                "k.format": FLOAT_FORMATS,
            },
            _write,
        ),
        Space("kv_copy_blocks@1", cache | {"count": (1, 4, 9)}, _copy),
        Space("kv_export@1", cache | {"count": (1, 4, 7)}, _export),
        Space("kv_import@1", cache | {"count": (1, 4)}, _import),
    )
