"""Honest kernels of elementwise, row and sampling operations."""

from __future__ import annotations

from math import sqrt
from typing import Any

from runtime.backend import InvalidArgument
from runtime_conformance.saboteurs.kernels import _indices, _plain, decoded
from runtime_conformance.saboteurs.precision import Precision


def _sigmoid(x: Any) -> Any:
    import numpy as np

    small = np.exp(-np.abs(x))
    return np.where(x >= 0, np.float32(1), small) / (np.float32(1) + small)


def _gate(kind: str, x: Any) -> Any:
    import numpy as np

    from runtime.ops.special import erf

    if kind == "silu":
        return x * _sigmoid(x)
    if kind == "gelu":
        return np.float32(0.5) * x * (np.float32(1) + erf(x.astype(np.float64) / sqrt(2)).astype(np.float32))
    if kind == "gelu_tanh":
        inner = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)
        return np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))
    if kind == "quick_gelu":
        return x * _sigmoid(np.float32(1.702) * x)
    if kind == "sigmoid":
        return _sigmoid(x)
    if kind == "tanh":
        return np.tanh(x)
    y = np.maximum(x, np.float32(0))
    return y * y if kind == "relu2" else y


def activation(p: Precision, x: Any, kind: str) -> Any:
    """Elementwise."""
    return p.out(_gate(kind, _plain(p, x)), x)


def glu(p: Precision, gate: Any, up: Any, kind: str, alpha: float = 1.702, limit: float = 7.0) -> Any:
    """Gated."""
    import numpy as np

    g, u = _plain(p, gate), _plain(p, up)
    if kind != "swiglu_oai":
        return p.out(_gate(kind, g) * u, gate)
    g, u = np.minimum(g, np.float32(limit)), np.clip(u, np.float32(-limit), np.float32(limit))
    return p.out(g * _sigmoid(np.float32(alpha) * g) * (u + np.float32(1)), gate)


def add(p: Precision, a: Any, b: Any) -> Any:
    """Sum."""
    import numpy as np

    return p.out(a.astype(np.float32) + b.astype(np.float32), a)


def mul(p: Precision, a: Any, b: Any = None, scale: float = 1.0) -> Any:
    """Product."""
    import numpy as np

    y = a.astype(np.float32)
    return p.out((y if b is None else y * b.astype(np.float32)) * np.float32(scale), a)


def softcap(p: Precision, x: Any, cap: float) -> Any:
    """Bounded."""
    import numpy as np

    c = np.float32(cap)
    return p.out(c * np.tanh(x.astype(np.float32) / c), x)


def convert(p: Precision, x: Any, format: str) -> Any:
    """In another format."""
    import numpy as np

    from runtime_conformance.saboteurs.precision import rounded

    y = rounded("bf16", x) if format == "bf16" else x
    return y.astype({"f16": np.float16, "f64": np.float64}.get(format, np.float32))


def softmax(p: Precision, x: Any, log: bool = False, scale: float = 1.0) -> Any:
    """Over columns."""
    import numpy as np

    a = _plain(p, x) * np.float32(scale)
    shifted = a - a.max(-1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(-1, keepdims=True)
    return p.out(shifted - np.log(total) if log else e / total, x)


def topk(p: Precision, x: Any, k: int) -> Any:
    """Largest first, lower index among equals."""
    import numpy as np

    order = np.argsort(-np.where(np.isnan(x), -np.inf, x), 1, kind="stable")[:, :k]
    return np.take_along_axis(x, order, 1), order.astype(np.int32)


def argmax(p: Precision, x: Any) -> Any:
    """The first of the largest."""
    import numpy as np

    return np.where(np.isnan(x), -np.inf, x).argmax(1).astype(np.int32)


def gather_rows(p: Precision, x: Any, rows: Any) -> Any:
    """Chosen rows."""
    _indices("rows", rows, len(x))
    return x[rows]


def concat(p: Precision, **parts: Any) -> Any:
    """Side by side."""
    import numpy as np

    return np.concatenate([parts[f"x{i}"] for i in range(len(parts))], 1)


def split(p: Precision, x: Any, sizes: tuple[int, ...]) -> Any:
    """Apart."""
    import numpy as np

    return tuple(np.split(x, np.cumsum(sizes)[:-1], 1))


def moe_route(
    p: Precision, logits: Any, top_k: int, score: str, normalize: bool, scale: float = 1.0, bias: Any = None
) -> Any:
    """Experts and weights."""
    import numpy as np

    def soft(a: Any) -> Any:
        e = np.exp(a - a.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    a = logits.astype(np.float32)
    scores = soft(a) if score == "softmax" else _sigmoid(a) if score == "sigmoid" else a
    ids = np.argsort(-(scores if bias is None else scores + bias), 1, kind="stable")[:, :top_k]
    weights = np.take_along_axis(scores, ids, 1)
    if score == "softmax_selected":
        weights = soft(weights)
    elif normalize:
        weights = weights / weights.sum(1, keepdims=True)
    return ids.astype(np.int32), (weights * np.float32(scale)).astype(np.float32)


def moe_linear(
    p: Precision,
    x: Any,
    weight: Any,
    expert_ids: Any,
    bias: Any = None,
    expert_weights: Any = None,
    per_expert_input: bool = False,
) -> Any:
    """Products of the chosen experts."""
    import numpy as np

    w = decoded(weight)
    tokens, k = expert_ids.shape
    _indices("expert_ids", expert_ids, len(w))
    rows = p.act(x.reshape(tokens, k, -1) if per_expert_input else np.repeat(x[:, None, :], k, 1))
    y = np.einsum("tkn->tkn", np.stack([[w[e] @ r for e, r in zip(ids, rs)] for ids, rs in zip(expert_ids, rows)]))
    if bias is not None:
        y = y + bias[expert_ids]
    if expert_weights is None:
        return p.out(y.reshape(tokens, -1), x)
    return p.out((y * expert_weights[:, :, None]).sum(1), x)


def sample(p: Precision, **inputs: Any) -> Any:
    """One token per row, as the reference draws it but from float32 probabilities."""
    import numpy as np

    from runtime.ops import CATALOGUE, EXACT

    given = {n: v.astype(np.float64 if v.dtype.kind == "f" else np.int64) for n, v in inputs.items()}
    return CATALOGUE["sample@1"].run_reference(EXACT, given, {})[0].astype(np.int32)


def verify_draft(p: Precision, **inputs: Any) -> Any:
    """Drafts that are accepted, by the reference."""
    import numpy as np

    from runtime.ops import CATALOGUE, EXACT

    given = {n: v.astype(np.float64 if v.dtype.kind == "f" else np.int64) for n, v in inputs.items()}
    return tuple(y.astype(np.int32) for y in CATALOGUE["verify_draft@1"].run_reference(EXACT, given, {}))


def penalize(p: Precision, **inputs: Any) -> Any:
    """Penalties, by the reference in float32."""
    import numpy as np

    from runtime.ops import CATALOGUE, EXACT

    given = {n: v.astype(np.float64 if v.dtype.kind == "f" else np.int64) for n, v in inputs.items()}
    if (given["token_ids"] >= given["logits"].shape[1]).any():
        raise InvalidArgument("token_ids are outside of the vocabulary")
    return p.out(CATALOGUE["penalize@1"].run_reference(EXACT, given, {})[0], inputs["logits"])


def all_reduce(p: Precision, **parts: Any) -> Any:
    """The sum for everybody."""
    import numpy as np

    total = sum(parts[f"x{i}"].astype(np.float32) for i in range(len(parts)))
    return tuple(p.out(total, parts["x0"]).copy() for _ in parts)
