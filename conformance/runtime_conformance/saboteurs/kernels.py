"""Honest kernels in numpy's own arithmetic: what the saboteurs spoil."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.backend import InvalidArgument, QuantizedTensor
from runtime_conformance.saboteurs.precision import Precision, rounded

Kernel = Callable[..., Any]


def decoded(weight: Any) -> Any:
    """A weight as float32."""
    import numpy as np

    return weight.decode() if isinstance(weight, QuantizedTensor) else np.asarray(weight, np.float32)


def _indices(name: str, indices: Any, size: int, least: int = 0) -> None:
    if indices.size and (indices.min() < least or indices.max() >= size):
        raise InvalidArgument(f"{name} lies in {indices.min()} .. {indices.max()}, allowed are {least} .. {size - 1}")


def linear(p: Precision, x: Any, weight: Any, bias: Any = None) -> Any:
    """y = x weight^T + bias."""
    y = p.act(x) @ decoded(weight).T
    return p.out(y if bias is None else y + bias, x)


def rms_norm_linear(
    p: Precision, x: Any, norm_weight: Any, weight: Any, eps: float, weight_offset: float = 0.0, bias: Any = None
) -> Any:
    """Fused: nothing is written between the norm and the product."""
    return linear(p, rms_norm(p, x, norm_weight, eps, weight_offset), weight, bias)


def embed(p: Precision, token_ids: Any, weight: Any, scale: float = 1.0) -> Any:
    """Rows of the table."""
    import numpy as np

    table = decoded(weight)
    _indices("token_ids", token_ids, len(table))
    return table[token_ids] * np.float32(scale)


def rms_norm(p: Precision, x: Any, weight: Any, eps: float, weight_offset: float = 0.0) -> Any:
    """Runs of D elements."""
    import numpy as np

    runs = _plain(p, x).reshape(len(x), -1, len(weight))
    mean = (runs * runs).mean(-1, keepdims=True, dtype=np.float32)
    y = runs / np.sqrt(mean + np.float32(eps)) * (weight + np.float32(weight_offset))
    return p.out(y.reshape(x.shape), x)


def _plain(p: Precision, x: Any) -> Any:
    """Activations of what is no product: integers are used for products only."""
    import numpy as np

    return np.asarray(x, np.float32) if p.activation.startswith("i") else p.act(x)


def layer_norm(p: Precision, x: Any, weight: Any, eps: float, bias: Any = None) -> Any:
    """Per row."""
    import numpy as np

    a = _plain(p, x)
    centred = a - a.mean(-1, keepdims=True, dtype=np.float32)
    y = centred / np.sqrt((centred * centred).mean(-1, keepdims=True, dtype=np.float32) + np.float32(eps)) * weight
    return p.out(y if bias is None else y + bias, x)


def rope(
    p: Precision, x: Any, positions: Any, inv_freq: Any, head_dim: int, interleaved: bool = False, scale: float = 1.0
) -> Any:
    """Pairs rotated."""
    import numpy as np

    if positions.size and positions.min() < 0:
        raise InvalidArgument(f"position {positions.min()} is negative")
    angle = (positions[:, None].astype(np.float32) * inv_freq)[:, None, :]
    cos, sin = np.cos(angle) * np.float32(scale), np.sin(angle) * np.float32(scale)
    heads = _plain(p, x).reshape(len(x), -1, head_dim)
    f = len(inv_freq)
    a, b = (slice(0, 2 * f, 2), slice(1, 2 * f, 2)) if interleaved else (slice(0, f), slice(f, 2 * f))
    y = heads.copy()
    y[..., a] = heads[..., a] * cos - heads[..., b] * sin
    y[..., b] = heads[..., b] * cos + heads[..., a] * sin
    return p.out(y.reshape(x.shape), x)


def attention(p: Precision, q: Any, kv: Any, block_table: Any, query_start_loc: Any, seq_lens: Any, **how: Any) -> Any:
    """Sequence by sequence. `how`: attributes, sinks, alibi_slopes; saboteurs add mask_shift, no_maximum, p_format."""
    import numpy as np

    lengths = query_start_loc[1:] - query_start_loc[:-1]
    size = kv.shape[2]
    if query_start_loc[0] != 0 or (lengths < 0).any() or query_start_loc[-1] > len(q):
        raise InvalidArgument(f"query_start_loc {query_start_loc.tolist()} does not fit {len(q)} rows")
    if (seq_lens > block_table.shape[1] * size).any() or (how.get("causal", True) and (seq_lens < lengths).any()):
        raise InvalidArgument(f"seq_lens {seq_lens.tolist()} do not fit")
    heads, d = how["num_heads"], how["head_dim"]
    y = np.zeros((len(q), heads, d), np.float32)
    for s, length in enumerate(seq_lens.tolist()):
        rows = slice(int(query_start_loc[s]), int(query_start_loc[s + 1]))
        if rows.stop == rows.start:
            continue
        window = how.get("window", 0)
        first = max(0, length - (rows.stop - rows.start) - window + 1) if window else 0
        used = block_table[s, first // size : -(-length // size)]
        _indices("block_table", used, kv.shape[1])
        slots = np.arange(length)
        table = np.where(np.isin(np.arange(block_table.shape[1]), np.arange(first // size)), used[:1], block_table[s])
        keys, values = (_plain(p, kv[i, table[slots // size], slots % size]) for i in (0, 1))
        y[rows] = _attend(p, _plain(p, q[rows]).reshape(-1, heads, d), keys, values, length, how)
    return p.out(y.reshape(q.shape), q)


def _attend(p: Precision, q: Any, keys: Any, values: Any, length: int, how: dict[str, Any]) -> Any:
    import numpy as np

    n, heads, _ = q.shape
    group = heads // how["num_kv_heads"]
    keys, values = (np.repeat(a.transpose(1, 0, 2), group, 0) for a in (keys, values))
    s = (q.transpose(1, 0, 2) @ keys.transpose(0, 2, 1)) * np.float32(how["scale"])
    if how.get("softcap"):
        cap = np.float32(how["softcap"])
        s = cap * np.tanh(s / cap)
    positions = np.arange(length - n, length)[:, None]
    distance = positions - np.arange(length)
    if how.get("alibi_slopes") is not None:
        s = s - how["alibi_slopes"][:, None, None] * distance.astype(np.float32)
    hidden = distance < how.get("mask_shift", 0) if how.get("causal", True) else np.zeros(distance.shape, bool)
    if how.get("window"):
        hidden = hidden | (distance >= how["window"])
    s = np.where(hidden, np.float32(-np.inf), s)
    sinks = how.get("sinks")
    largest = s.max(-1, keepdims=True)
    if sinks is not None:
        largest = np.maximum(largest, sinks[:, None, None])
    largest = np.where(np.isneginf(largest) | how.get("no_maximum", False), np.float32(0), largest)
    e = np.exp(s - largest)
    total = e.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - largest)
    probability = e / np.where(total == 0, np.float32(1), total)
    probability = rounded(how.get("p_format", p.declared.probability), probability)
    return (probability @ values).transpose(1, 0, 2)


def kv_write(p: Precision, kv: Any, k: Any, v: Any, slot_mapping: Any) -> Any:
    """Into the slots."""
    _, num_blocks, size, h, d = kv.shape
    _indices("slot_mapping", slot_mapping, num_blocks * size, -1)
    rows = (slot_mapping >= 0).nonzero()[0]
    slots = slot_mapping[rows]
    if len(set(slots.tolist())) < len(slots):
        raise InvalidArgument("a slot is written twice")
    for part, data in ((0, k), (1, v)):
        kv[part, slots // size, slots % size] = data[rows].reshape(len(rows), h, d)
    return kv


def kv_copy_blocks(p: Precision, kv: Any, source_blocks: Any, target_blocks: Any) -> Any:
    """Whole blocks."""
    sources, targets = set(source_blocks.tolist()), target_blocks.tolist()
    _indices("source_blocks", source_blocks, kv.shape[1])
    _indices("target_blocks", target_blocks, kv.shape[1])
    if len(set(targets)) < len(targets) or sources & set(targets):
        raise InvalidArgument("targets are not distinct, or are sources too")
    kv[:, target_blocks] = kv[:, source_blocks]
    return kv


def kv_export(p: Precision, kv: Any, block_ids: Any) -> Any:
    """In the canonical layout."""
    import numpy as np

    _indices("block_ids", block_ids, kv.shape[1])
    return kv[:, block_ids].astype(np.float32)


def kv_import(p: Precision, kv: Any, data: Any, block_ids: Any) -> Any:
    """From the canonical layout."""
    _indices("block_ids", block_ids, kv.shape[1])
    if len(set(block_ids.tolist())) < len(block_ids):
        raise InvalidArgument("a block is written twice")
    kv[:, block_ids] = data.astype(kv.dtype)
    return kv
