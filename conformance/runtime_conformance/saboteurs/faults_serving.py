"""Faults of attention, of the paged cache, of choices and of collectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime_conformance.saboteurs.faults import Saboteur, answers, asks, without
from runtime_conformance.saboteurs.precision import rounded


def _heads(given: dict[str, Any]) -> Any:
    import numpy as np

    heads, kv_heads = given["num_heads"], given["num_kv_heads"]
    return np.array(sorted(range(heads), key=lambda h: (h % kv_heads, h // kv_heads)))


def _wrong_groups(honest: Callable[..., Any]) -> Callable[..., Any]:
    """Query head h uses KV head h % num_kv_heads."""

    def run(**given: Any) -> Any:
        import numpy as np

        order, d = _heads(given), given["head_dim"]
        q = given["q"].reshape(len(given["q"]), -1, d)
        y = honest(**{**given, "q": q[:, order].reshape(given["q"].shape)}).reshape(q.shape)
        back = np.empty_like(y)
        back[:, order] = y
        return back.reshape(given["q"].shape)

    return run


def _newest_block(given: dict[str, Any], pick: Callable[[Any, int, int], int]) -> dict[str, Any]:
    """The block table with the newest block of each sequence replaced by `pick(row, column, length)`."""
    table, size = given["block_table"].copy(), given["kv"].shape[2]
    for s, length in enumerate(given["seq_lens"].tolist()):
        column = max(0, -(-length // size) - 1)
        table[s, column] = pick(table[s], column, length)
    return {"block_table": table}


def _no_pause(given: dict[str, Any]) -> dict[str, Any]:
    """Sequences without queries in this step are left out of the borders, not of the lengths."""
    import numpy as np

    starts = np.unique(given["query_start_loc"])
    return {"query_start_loc": np.pad(starts, (0, len(given["query_start_loc"]) - len(starts)), mode="edge")}


def _longer(given: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    return {"seq_lens": np.minimum(given["seq_lens"] + 1, given["block_table"].shape[1] * given["kv"].shape[2])}


def _reads_everything(y: Any, given: dict[str, Any]) -> Any:
    return (y + 0 * given["kv"].astype(float).sum()).astype(y.dtype)


ATTENTION = (
    Saboteur("mask-newest-hidden", "attention@1", "the newest key is masked", asks(lambda g: {"mask_shift": 1})),
    Saboteur("mask-next-visible", "attention@1", "sequences are taken as one key longer", asks(_longer)),
    Saboteur(
        "mask-inside-prefill",
        "attention@1",
        "in a prompt every query sees the key after it",
        asks(lambda g: {"mask_shift": -1}),
    ),
    Saboteur("mask-none", "attention@1", "the causal mask is missing", asks(lambda g: {"causal": False})),
    Saboteur("mask-always", "attention@1", "bidirectional attention is masked", asks(lambda g: {"causal": True})),
    Saboteur(
        "window-wide",
        "attention@1",
        "the window is one too wide",
        asks(lambda g: {"window": g["window"] + 1} if g.get("window") else {}),
    ),
    Saboteur(
        "window-narrow",
        "attention@1",
        "the window is one too narrow",
        asks(lambda g: {"window": g["window"] - 1} if g.get("window") else {}),
    ),
    Saboteur("window-ignored", "attention@1", "the window is ignored", without(window=0)),
    Saboteur("softcap-missing", "attention@1", "the soft cap is missing", without(softcap=0.0)),
    Saboteur("sinks-ignored", "attention@1", "sinks are ignored", without(sinks=None)),
    Saboteur(
        "alibi-sign",
        "attention@1",
        "slopes have the wrong sign",
        asks(lambda g: {"alibi_slopes": -g["alibi_slopes"]} if "alibi_slopes" in g else {}),
    ),
    Saboteur("gqa-mapping", "attention@1", "query head h uses KV head h % num_kv_heads", _wrong_groups),
    Saboteur("scale-missing", "attention@1", "scores are not scaled", asks(lambda g: {"scale": 1.0})),
    Saboteur(
        "scale-percent", "attention@1", "the scale is one percent off", asks(lambda g: {"scale": g["scale"] * 1.01})
    ),
    Saboteur(
        "table-first-row",
        "attention@1",
        "all sequences read the blocks of the first",
        asks(lambda g: {"block_table": g["block_table"][[0] * len(g["block_table"])]}),
    ),
    Saboteur(
        "block-last-stale",
        "attention@1",
        "the newest block is the one before it",
        asks(
            lambda g: _newest_block(g, lambda row, c, n: row[max(0, c - 1)] if c else (row[0] + 1) % g["kv"].shape[1])
        ),
    ),
    Saboteur(
        "block-border",
        "attention@1",
        "a sequence that has just entered a block still reads the old one",
        asks(lambda g: _newest_block(g, lambda row, c, n: row[c - 1] if n % g["kv"].shape[2] == 1 and c else row[c])),
    ),
    Saboteur("keys-are-values", "attention@1", "keys and values are exchanged", asks(lambda g: {"kv": g["kv"][::-1]})),
    Saboteur(
        "softmax-overflow",
        "attention@1",
        "the softmax does not subtract the maximum",
        asks(lambda g: {"no_maximum": True}),
    ),
    Saboteur(
        "probability-bf16",
        "attention@1",
        "probabilities in bfloat16 declared float32",
        asks(lambda g: {"p_format": "bf16"}),
    ),
    Saboteur(
        "free-slots-read", "attention@1", "free slots are read and multiplied by zero", answers(_reads_everything)
    ),
    Saboteur("pause-mishandled", "attention@1", "sequences without queries shift those after them", asks(_no_pause)),
    Saboteur(
        "head-tail",
        "attention@1",
        "elements of a head after a multiple of 64 are zero",
        answers(lambda y, g: _head_tail(y, g)),
    ),
)


def _head_tail(y: Any, given: dict[str, Any]) -> Any:
    d = given["head_dim"]
    heads = y.reshape(len(y), -1, d).copy()
    heads[..., max(16, d // 64 * 64) :] = 0
    return heads.reshape(y.shape)


def _past_the_end(kv: Any, given: dict[str, Any]) -> Any:
    slots = given["slot_mapping"]
    size = kv.shape[2]
    for slot in (slots[slots >= 0] + 1).tolist():
        if slot < kv.shape[1] * size and slot not in slots:
            kv[0, slot // size, slot % size, 0, :4] = 0
    return kv


def _skips_first(honest: Callable[..., Any]) -> Callable[..., Any]:
    def run(kv: Any, slot_mapping: Any, **given: Any) -> Any:
        import numpy as np

        slots = np.where(slot_mapping % kv.shape[2] == 0, -1, slot_mapping)
        return honest(kv=kv, slot_mapping=slots, **given)

    return run


def _wraps(honest: Callable[..., Any]) -> Callable[..., Any]:
    """A slot of -1 counts from the end, as in numpy."""

    def run(kv: Any, k: Any, v: Any, slot_mapping: Any) -> Any:
        honest(kv=kv, k=k, v=v, slot_mapping=slot_mapping)
        for row in (slot_mapping < 0).nonzero()[0]:
            kv[0, -1, -1], kv[1, -1, -1] = k[row].reshape(kv.shape[3:]), v[row].reshape(kv.shape[3:])
        return kv

    return run


def _cut(given: dict[str, Any]) -> dict[str, Any]:
    """Keys with the bits of float32 that float16 has no room for set to zero."""
    import numpy as np

    if given["kv"].dtype != np.float16:
        return {}
    bits = np.asarray(given["k"], np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
    return {"k": bits.view(np.float32)}


def _only_keys(honest: Callable[..., Any]) -> Callable[..., Any]:
    def run(kv: Any, **given: Any) -> Any:
        values = kv[1].copy()
        kv = honest(kv=kv, **given)
        kv[1] = values
        return kv

    return run


CACHE = (
    Saboteur(
        "slot-border",
        "kv_write@1",
        "a row at the end of a block lands in the next one",
        asks(lambda g: {"slot_mapping": _moved(g["slot_mapping"], g["kv"].shape[2])}),
    ),
    Saboteur("slot-wraps", "kv_write@1", "a slot of -1 writes the last slot", _wraps),
    Saboteur("write-past-end", "kv_write@1", "one vector is written past each row", answers(_past_the_end)),
    Saboteur("write-keys-twice", "kv_write@1", "keys are written where values belong", asks(lambda g: {"v": g["k"]})),
    Saboteur(
        "write-bf16",
        "kv_write@1",
        "the cache is written through bfloat16",
        asks(lambda g: {"k": rounded("bf16", g["k"]).astype(g["k"].dtype)}),
    ),
    Saboteur("write-cuts", "kv_write@1", "what is written to a cache in f16 is cut instead of rounded", asks(_cut)),
    Saboteur(
        "stale-after-preemption",
        "kv_write@1",
        "the first slot of a block keeps what an earlier sequence left",
        _skips_first,
    ),
    Saboteur("copy-only-keys", "kv_copy_blocks@1", "values are not copied", _only_keys),
    Saboteur(
        "copy-reversed",
        "kv_copy_blocks@1",
        "sources and targets are exchanged",
        asks(lambda g: {"source_blocks": g["target_blocks"], "target_blocks": g["source_blocks"]}),
    ),
    Saboteur(
        "export-layout",
        "kv_export@1",
        "heads and slots are exchanged in the export",
        answers(lambda y, g: y.swapaxes(2, 3).reshape(y.shape).copy()),
    ),
    Saboteur(
        "import-order",
        "kv_import@1",
        "blocks are imported in the order of their ids",
        asks(lambda g: {"block_ids": _ascending(g["block_ids"])}),
    ),
)


def _ascending(ids: Any) -> Any:
    import numpy as np

    return np.sort(ids) if len(ids) > 1 else np.roll(ids, 1) - (ids > 0)


def _moved(slots: Any, size: int) -> Any:
    import numpy as np

    moved = np.where(slots % size == size - 1, slots + 1, slots)
    return slots if len(set(moved.tolist())) < len(set(slots.tolist())) or moved.max(initial=0) >= 10**6 else moved


def _unsorted(y: Any, given: dict[str, Any]) -> Any:
    return tuple(a[:, ::-1].copy() for a in y)


def _last_tie(honest: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any) -> Any:
        import numpy as np

        return (x.shape[1] - 1 - np.where(np.isnan(x), -np.inf, x)[:, ::-1].argmax(1)).astype(np.int32)

    return run


def _starts_at_zero(honest: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any) -> Any:
        import numpy as np

        return np.where(np.nan_to_num(x, nan=-1.0).max(1) > 0, honest(x=x), 0).astype(np.int32)

    return run


def _nan_largest(honest: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any, **given: Any) -> Any:
        import numpy as np

        return honest(x=np.where(np.isnan(x), np.inf, x).astype(x.dtype), **given)

    return run


def _plain_softmax(honest: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any, log: bool = False, scale: float = 1.0) -> Any:
        import numpy as np

        e = np.exp(x.astype(np.float32) * np.float32(scale))
        y = e / e.sum(-1, keepdims=True)
        return (np.log(y) if log else y).astype(x.dtype)

    return run


CHOICES = (
    Saboteur("glu-sides", "glu@1", "gate and up are exchanged", asks(lambda g: {"gate": g["up"], "up": g["gate"]})),
    Saboteur("glu-limit", "glu@1", "swiglu_oai without its limit", asks(lambda g: {"limit": 1e9})),
    Saboteur(
        "gelu-approximate",
        "activation@1",
        "gelu by the tanh formula",
        asks(lambda g: {"kind": "gelu_tanh"} if g["kind"] == "gelu" else {}),
    ),
    Saboteur(
        "silu-is-gelu",
        "activation@1",
        "silu by x sigmoid(1.702 x)",
        asks(lambda g: {"kind": "quick_gelu"} if g["kind"] == "silu" else {}),
    ),
    Saboteur("add-half", "add@1", "sums in float16", answers(lambda y, g: rounded("f16", y).astype(y.dtype))),
    Saboteur(
        "softcap-clips",
        "softcap@1",
        "values are clipped instead of bent",
        answers(lambda y, g: g["x"].clip(-g["cap"], g["cap"]).astype(y.dtype)),
    ),
    Saboteur("mul-scale", "mul@1", "the scale is ignored", without(scale=1.0)),
    Saboteur("softmax-no-maximum", "softmax@1", "the softmax does not subtract the maximum", _plain_softmax),
    Saboteur("softmax-scale", "softmax@1", "the scale is ignored", without(scale=1.0)),
    Saboteur("topk-ascending", "topk@1", "the smallest of the largest comes first", answers(_unsorted)),
    Saboteur("topk-nan", "topk@1", "NaN counts as the largest", _nan_largest),
    Saboteur("topk-indices", "topk@1", "indices are one too large", answers(lambda y, g: (y[0], y[1] + 1))),
    Saboteur(
        "topk-repeats",
        "topk@1",
        "equal elements are given twice by the same index",
        answers(lambda y, g: (y[0], _first_of_equal(y[0], y[1]))),
    ),
    Saboteur("argmax-last", "argmax@1", "the last of equal elements", _last_tie),
    Saboteur("argmax-zero", "argmax@1", "the search starts at zero", _starts_at_zero),
    Saboteur(
        "gather-shift",
        "gather_rows@1",
        "rows are taken modulo one less",
        asks(lambda g: {"rows": g["rows"] % max(1, len(g["x"]) - 1)}),
    ),
    Saboteur("concat-order", "concat@1", "parts come in the reverse order", answers(lambda y, g: y[:, ::-1].copy())),
    Saboteur(
        "sample-seed", "sample@1", "the random numbers are ignored", asks(lambda g: {"uniform": g["uniform"] * 0 + 0.5})
    ),
    Saboteur(
        "sample-temperature",
        "sample@1",
        "the temperature is ignored",
        asks(lambda g: {"temperature": (g["temperature"] > 0) * g["temperature"].dtype.type(1)}),
    ),
    Saboteur(
        "sample-top-k", "sample@1", "top_k keeps one more", asks(lambda g: {"top_k": g["top_k"] + (g["top_k"] > 0)})
    ),
    Saboteur(
        "penalty-prompt",
        "penalize@1",
        "presence counts the prompt too",
        asks(lambda g: {"output_counts": g["output_counts"].clip(1)}),
    ),
    Saboteur(
        "penalty-sign",
        "penalize@1",
        "negative logits are divided as well",
        asks(lambda g: {"repetition": 1 / g["repetition"]}),
    ),
    Saboteur(
        "moe-next-expert",
        "moe_linear@1",
        "the expert after the chosen one",
        asks(
            lambda g: {
                "expert_ids": (g["expert_ids"] + 1)
                % len(g["weight"] if hasattr(g["weight"], "ndim") else g["weight"].decode())
            }
        ),
    ),
    Saboteur(
        "moe-unweighted",
        "moe_linear@1",
        "experts are summed with equal shares",
        asks(lambda g: {"expert_weights": g["expert_weights"] * 0 + 1} if "expert_weights" in g else {}),
    ),
    Saboteur(
        "route-bias-in-weights",
        "moe_route@1",
        "the bias for the choice is part of the weights",
        answers(lambda y, g: (y[0], y[1] + g["bias"][y[0]].astype(y[1].dtype)) if "bias" in g else y),
    ),
    Saboteur("route-unnormalised", "moe_route@1", "weights are not normalised", asks(lambda g: {"normalize": False})),
    Saboteur(
        "reduce-misses-rank",
        "all_reduce@1",
        "the last rank is missing from the sum",
        answers(lambda y, g: tuple(a - g[f"x{len(y) - 1}"] for a in y)),
    ),
    Saboteur(
        "reduce-one-rank-stale",
        "all_reduce@1",
        "one rank keeps its own part",
        answers(lambda y, g: (g["x0"].copy(), *y[1:])),
    ),
)


def _first_of_equal(values: Any, indices: Any) -> Any:
    import numpy as np

    made = indices.copy()
    for column in range(1, values.shape[1]):
        equal = values[:, column] == values[:, column - 1]
        made[:, column] = np.where(equal, made[:, column - 1], made[:, column])
    return made
