"""A node becomes one call: (inputs by port, attributes) -> array. Caches lie as [block, head, k or v, slot, element]."""

import numpy as np

from runtime.backend import InvalidArgument, Unsupported

VIEW = {"f32": "<f4", "f16": "<f2", "i32": "<i4", "i64": "<i8", "u8": "<u1", "u32": "<u4"}
KV_VIEW = {"f32": "<f4", "f16": "<f2"}


def weave(node):
    if node.op.key not in CALLS:
        raise Unsupported(f"the loom has no pattern for {node.op.key}", reasons=["not in its book"])
    return CALLS[node.op.key]


def embed(given, attrs):
    ids, table = given["token_ids"], given["weight"]
    check(ids, len(table), "token")
    return table[ids] * np.float32(attrs.get("scale", 1.0))


def linear(given, attrs):
    y = given["x"] @ given["weight"].T
    return y + given["bias"] if "bias" in given else y


def rms_norm(given, attrs):
    x, weight = given["x"], given["weight"]
    runs = x.reshape(len(x), -1, len(weight))
    scale = 1 / np.sqrt(np.mean(runs * runs, axis=2, keepdims=True) + np.float32(attrs["eps"]))
    return (runs * scale * (weight + np.float32(attrs.get("weight_offset", 0.0)))).reshape(x.shape)


def rope(given, attrs):
    x, positions, inv_freq = given["x"], given["positions"], given["inv_freq"]
    if positions.size and positions.min() < 0:
        raise InvalidArgument(f"position {positions.min()} is negative")
    angle = (positions[:, None].astype(np.float32) * inv_freq)[:, None, :]
    scale = np.float32(attrs.get("scale", 1.0))
    cos, sin, f = np.cos(angle) * scale, np.sin(angle) * scale, len(inv_freq)
    y = x.reshape(len(x), -1, attrs["head_dim"]).copy()
    pairs = (slice(0, 2 * f, 2), slice(1, 2 * f, 2)) if attrs.get("interleaved") else (slice(0, f), slice(f, 2 * f))
    a, b = y[..., pairs[0]].copy(), y[..., pairs[1]].copy()
    y[..., pairs[0]], y[..., pairs[1]] = a * cos - b * sin, b * cos + a * sin
    return y.reshape(x.shape)


def kv_write(given, attrs):
    kv, slots = given["kv"], given["slot_mapping"]
    blocks, heads, _, block_size, head_dim = kv.shape
    used = slots >= 0
    chosen = slots[used]
    if (slots < -1).any() or len(np.unique(chosen)) != len(chosen):
        raise InvalidArgument(f"slots {slots.tolist()} are negative or given twice")
    check(chosen, blocks * block_size, "slot")
    for side, rows in enumerate((given["k"], given["v"])):
        kv[chosen // block_size, :, side, chosen % block_size] = rows[used].reshape(-1, heads, head_dim)
    return kv


def attention(given, attrs):
    q, kv, table = given["q"], given["kv"], given["block_table"]
    starts, lengths = given["query_start_loc"].tolist(), given["seq_lens"].tolist()
    heads, groups, head_dim = attrs["num_kv_heads"], attrs["num_heads"] // attrs["num_kv_heads"], attrs["head_dim"]
    block_size, window, cap = kv.shape[3], attrs.get("window", 0), attrs.get("softcap", 0.0)
    if starts[0] != 0 or starts[-1] > len(q) or any(a > b for a, b in zip(starts, starts[1:])):
        raise InvalidArgument(f"query_start_loc {starts} does not fit {len(q)} rows")
    y = np.zeros_like(q)
    for s, length in enumerate(lengths):
        first, last = starts[s], starts[s + 1]
        if length < last - first or length > table.shape[1] * block_size:
            raise InvalidArgument(f"sequence {s} has {length} keys for {last - first} queries")
        if first == last:
            continue
        blocks = table[s, : -(-length // block_size)]
        check(blocks, len(kv), "block")
        both = kv[blocks].transpose(2, 1, 0, 3, 4).reshape(2, heads, -1, head_dim)[:, :, :length].astype(np.float32)
        rows = q[first:last].reshape(last - first, heads, groups, head_dim).transpose(1, 2, 0, 3)
        scores = rows @ both[0][:, None].transpose(0, 1, 3, 2) * np.float32(attrs["scale"])
        if cap:
            scores = np.float32(cap) * np.tanh(scores / np.float32(cap))
        distance = np.arange(length - (last - first), length)[:, None] - np.arange(length)
        hidden = (distance < 0) | ((distance >= window) if window else False)
        scores = np.where(hidden, np.float32(-np.inf), scores)
        weights = np.exp(scores - scores.max(axis=3, keepdims=True))
        weights /= weights.sum(axis=3, keepdims=True)
        y[first:last] = (weights @ both[1][:, None]).transpose(2, 0, 1, 3).reshape(last - first, -1)
    return y


def glu(given, attrs):
    gate = given["gate"]
    return gate / (1 + np.exp(-gate)) * given["up"]


def gather_rows(given, attrs):
    check(given["rows"], len(given["x"]), "row")
    return given["x"][given["rows"]]


def argmax(given, attrs):
    x = given["x"]
    return np.where(np.isnan(x), -np.inf, x).argmax(axis=1).astype(np.int32)


def check(indices, count, what):
    if indices.size and (indices.min() < 0 or indices.max() >= count):
        raise InvalidArgument(f"{what}s {indices.tolist()} must lie in 0..{count - 1}")


CALLS = {
    "embed@1": embed,
    "linear@1": linear,
    "rms_norm@1": rms_norm,
    "rope@1": rope,
    "kv_write@1": kv_write,
    "attention@1": attention,
    "glu@1": glu,
    "add@1": lambda given, attrs: given["a"] + given["b"],
    "gather_rows@1": gather_rows,
    "argmax@1": argmax,
}
