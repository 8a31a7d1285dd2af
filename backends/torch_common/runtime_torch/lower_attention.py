"""Positions, the KV cache and attention: from nodes to calls."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from runtime_torch.calls import Call, Site, cdiv, clamp, launch
from runtime_torch.kernels import attention as attention_kernels
from runtime_torch.kernels import cache, rope
from runtime_torch.kernels.blocks import BF16, BF16_EMULATED, F16, F16_EMULATED, F32
from runtime_torch.memory import DTYPES
from runtime_torch.products import products_calls
from runtime_torch.settings import next_power

MIN_SEQS = 16
"""Fewer sequences are looked through as so many: a kernel is built for each power of two."""
MAX_SUMS = 1 << 14
"""Of a tile: eight warps hold 64 of them in the registers of a thread, beside as many scores."""
LARGE_ROWS = 64
"""Tiles from here on are those of prompts: one fills a multiprocessor, and most of its keys need no mask."""


def lower_rope(site: Site) -> list[Call]:
    """Rotated heads."""
    x, inv_freq = site.tensor("x"), site.tensor("inv_freq")
    head_dim = site.attr("head_dim")
    num_heads = x.shape[1] // head_dim
    tokens, heads = _heads_per_program(site, head_dim, num_heads, x.shape[0])
    arguments = (x, site.tensor("positions"), inv_freq, site.output(), x.shape[0], num_heads, float(site.attr("scale")))
    constants = _rotary(head_dim, inv_freq.shape[0], site.attr("interleaved"))
    grid = (cdiv(x.shape[0], tokens), cdiv(num_heads, heads))
    return [launch(rope.rope, grid, *arguments, **constants, BT=tokens, BR=heads)]


def _heads_per_program(site: Site, head_dim: int, num_heads: int, num_rows: int) -> tuple[int, int]:
    """Tokens, and heads of each; those of few tokens are spread over more programs."""
    tiles = site.settings.tiles
    elements = tiles.row_elements // (4 if num_rows > MIN_SEQS else 8)
    heads = clamp(elements // next_power(head_dim), 1, next_power(num_heads))
    return min(tiles.tokens, next_power(num_rows)), heads


def _rotary(head_dim: int, num_freqs: int, interleaved: bool) -> dict[str, int]:
    return {
        "HEAD_DIM": head_dim,
        "NUM_FREQS": num_freqs,
        "INTERLEAVED": interleaved,
        "BF": next_power(num_freqs),
        "BD": next_power(max(1, head_dim - 2 * num_freqs)),
    }


def lower_kv_write(site: Site) -> list[Call]:
    """In place; a cache that is no state of the region is copied first."""
    k, v = site.tensor("k"), site.tensor("v")
    kv, calls = _cache(site)
    num_rows, width = k.shape
    block = next_power(width)
    rows = clamp(site.settings.tiles.row_elements // block, 1, next_power(num_rows))
    arguments = (k, v, site.tensor("slot_mapping"), kv, site.fault, num_rows, width, kv.shape[1] * kv.shape[2])
    return [*calls, launch(cache.kv_write, (cdiv(num_rows, rows), 2), *arguments, BR=rows, BLOCK=block)]


def _cache(site: Site) -> tuple[torch.Tensor, list[Call]]:
    """The cache that the node writes, and the copy that it needs first where it is not the one that it reads."""
    index = next(i for i, port in enumerate(site.node.op.outputs) if port.name in site.node.op.inplace)
    target = site.output(index)
    if site.outputs[index] is site.inputs["kv"]:
        return target, []
    source = site.tensor("kv")
    return target, [lambda: target.copy_(source)]


def lower_qkv_rope_write(site: Site) -> list[Call]:
    """Three products, in one launch where rows are few, and one kernel for everything after them."""
    x, inv_freq, head_dim = site.tensor("x"), site.tensor("inv_freq"), site.attr("head_dim")
    kv, calls = _cache(site)
    num_rows, num_kv_heads = x.shape[0], kv.shape[3]
    num_heads = site.shape("q_weight")[0] // head_dim
    parts = {}
    for part, heads in (("q", num_heads), ("k", num_kv_heads), ("v", num_kv_heads)):
        parts[part] = site.scratch((num_rows, heads * head_dim))
    calls += products_calls(site, x, parts)
    tokens, per_program = _heads_per_program(site, head_dim, num_kv_heads, num_rows)
    eps = site.node.attrs.get("eps")
    arguments = (
        *(parts["q"], parts["k"], parts["v"], site.tensor("positions"), site.tensor("slot_mapping"), inv_freq),
        *(site.optional("q_norm", inv_freq), site.optional("k_norm", inv_freq), site.output(0), kv, site.fault),
        *(num_rows, num_heads, num_kv_heads, kv.shape[1] * kv.shape[2]),
        *(float(eps or 0.0), float(site.attr("weight_offset")), float(site.attr("rope_scale"))),
    )
    constants = _rotary(head_dim, inv_freq.shape[0], site.attr("interleaved"))
    norms = {"Q_NORM": site.has("q_norm"), "K_NORM": site.has("k_norm")}
    grid = (cdiv(num_rows, tokens), cdiv(num_heads, per_program) + 2 * cdiv(num_kv_heads, per_program))
    tile = {"BT": tokens, "BR": per_program, "BLOCK": next_power(head_dim)}
    return [*calls, launch(rope.qkv_rope_write, grid, *arguments, **constants, **norms, **tile)]


def lower_kv_copy_blocks(site: Site) -> list[Call]:
    """Blocks within a cache."""
    kv, calls = _cache(site)
    half = prod(kv.shape[1:])
    return [*calls, _move(site, kv, kv, site.tensor("source_blocks"), site.tensor("target_blocks"), (half, half))]


def lower_kv_export(site: Site) -> list[Call]:
    """Blocks of a cache as float32."""
    kv, data = site.tensor("kv"), site.output()
    halves = (prod(kv.shape[1:]), prod(data.shape[1:]))
    return [_move(site, kv, data, site.tensor("block_ids"), None, halves)]


def lower_kv_import(site: Site) -> list[Call]:
    """Blocks from float32."""
    kv, calls = _cache(site)
    data = site.tensor("data")
    halves = (prod(data.shape[1:]), prod(kv.shape[1:]))
    return [*calls, _move(site, data, kv, None, site.tensor("block_ids"), halves)]


def _move(
    site: Site,
    source: torch.Tensor,
    target: torch.Tensor,
    source_ids: torch.Tensor | None,
    target_ids: torch.Tensor | None,
    halves: tuple[int, int],
) -> Call:
    ids = source_ids if source_ids is not None else target_ids
    assert ids is not None
    elements = prod(source.shape[2:])
    block = min(site.settings.tiles.elements, next_power(elements))
    has = {"HAS_SOURCE_IDS": source_ids is not None, "HAS_TARGET_IDS": target_ids is not None}
    pointers = (source, target, ids if source_ids is None else source_ids, ids if target_ids is None else target_ids)
    grid = (ids.shape[0], 2, cdiv(elements, block))
    return launch(cache.move_blocks, grid, *pointers, site.fault, *halves, elements, **has, BLOCK=block)


def lower_attention(site: Site) -> list[Call]:
    """One launch: tiles of queries, of which long ones are split over the keys and merged by whoever comes last."""
    q, y, kv, tiles = site.tensor("q"), site.output(), site.tensor("kv"), site.settings.tiles
    (num_seqs, width), num_rows = site.shape("block_table"), q.shape[0]
    _, num_blocks, block_size, num_kv_heads, head_dim = kv.shape
    group, mode = site.attr("num_heads") // num_kv_heads, attention_mode(site)
    rows, keys = _attention_tile(site, mode)
    queries = rows // group
    is_large = rows >= LARGE_ROWS
    programs = max(1, tiles.programs // ((4 if is_large else 2) * num_kv_heads))
    least_steps = max(1, tiles.least_part // keys)
    # every part but the last of a tile has its share of the work: there are no more than so many
    num_tiles = min(num_rows, num_rows // queries + num_seqs + 1)
    most_parts = 1 if programs == 1 else cdiv(cdiv(width * block_size, keys), least_steps)
    num_items = min(num_tiles + programs, num_tiles * most_parts)
    num_slots = 0 if most_parts == 1 else min(num_items, 2 * programs)
    partial, largest, sums = y, y, y
    if num_slots:
        lines = (num_slots, num_kv_heads, rows)
        partial, largest, sums = site.scratch((*lines, head_dim)), site.scratch(lines), site.scratch(lines)
    scale = float(site.attr("scale"))
    arguments = (
        *(q, kv, site.tensor("block_table"), site.tensor("query_start_loc"), site.tensor("seq_lens")),
        *(site.optional("sinks", q), site.optional("alibi_slopes", q), y, partial, largest, sums),
        *(site.shared.workspace.zeros(num_slots * num_kv_heads), site.fault),
        *(num_rows, num_seqs, width, num_blocks * block_size, programs),
        *(float((scale > 0) - (scale < 0)), abs(scale) or 1.0, float(site.attr("softcap"))),
    )
    constants = {"MODE": mode, "SEQS": max(MIN_SEQS, next_power(num_seqs + 1)), "BQ": queries, "BM": rows, "BK": keys}
    kernel = launch(
        attention_kernels.attention_tiles,
        (num_items, num_kv_heads),
        *arguments,
        **constants,
        **_attention_constants(site),
        BD=max(tiles.min_dot, next_power(head_dim)),
        LEAST_STEPS=least_steps,
        PHASES=is_large,
        num_warps=8 if rows > LARGE_ROWS or rows * head_dim > 1 << 13 else 4,
        **({"num_stages": tiles.attention_stages} if tiles.attention_stages and not is_large else {}),
    )
    return [kernel]


def _attention_tile(site: Site, mode: int) -> tuple[int, int]:
    """Rows (queries with the heads of their group) and keys of a tile: what sequences have of queries on average."""
    tiles, (num_seqs, width), num_rows = site.settings.tiles, site.shape("block_table"), site.shape("q")[0]
    _, _, block_size, num_kv_heads, head_dim = site.shape("kv")
    group = site.attr("num_heads") // num_kv_heads
    head_size = max(tiles.min_dot, next_power(head_dim))
    head_bytes = head_size * (4 if mode == F32 else 2)
    most_rows = min(tiles.attention_rows, MAX_SUMS // head_size)
    wanted = min(most_rows, next_power(cdiv(num_rows, max(1, num_seqs)) * group))
    rows = max(tiles.min_dot, next_power(group), min(wanted, tiles.tile_bytes // head_bytes))
    most_keys = min(tiles.attention_keys, tiles.tile_bytes // 2 // head_bytes)
    if rows < LARGE_ROWS:
        most_keys = min(most_keys, tiles.least_part // 2)
    return rows, max(tiles.min_dot, min(next_power(width * block_size), most_keys))


def _attention_constants(site: Site) -> dict[str, Any]:
    """What the node itself fixes."""
    _, _, block_size, num_kv_heads, head_dim = site.shape("kv")
    return {
        "BLOCK_SIZE": block_size,
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP": site.attr("num_heads") // num_kv_heads,
        "HEAD_DIM": head_dim,
        "WINDOW": site.attr("window"),
        "CAUSAL": site.attr("causal"),
        "SOFTCAP": site.attr("softcap") > 0,
        "SINKS": site.has("sinks"),
        "SLOPES": site.has("alibi_slopes"),
    }


def attention_mode(site: Site) -> int:
    """What queries and probabilities are rounded to: the type of the cache, where products are those of halves."""
    dtype = DTYPES[site.spec("kv").format.name]
    if site.settings.precision == "f32" or dtype == torch.float32:
        return F32
    if dtype == torch.bfloat16:
        return BF16_EMULATED if site.settings.is_interpreted else BF16
    return F16_EMULATED if site.settings.is_interpreted else F16
