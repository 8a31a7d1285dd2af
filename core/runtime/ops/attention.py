"""attention: softmax attention over a paged KV cache, ragged over sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.dtypes import TensorSpec
from runtime.errors import InvalidArgument
from runtime.ops.checks import check_equal, check_indices
from runtime.ops.costs import total_nbytes
from runtime.ops.declare import INDEX, WEIGHTS, Attr, Attrs, Check, Op, Port, Refusal, Specs, Work
from runtime.ops.rounding import Rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_SCORES = 1 << 22
"""Scores held at once, 32 MiB in float64: long prompts are computed in runs of queries."""


@dataclass(frozen=True)
class _Scores:
    """How a product of query and key becomes a weight."""

    num_heads: int
    scale: float
    window: int
    softcap: float
    causal: bool
    sinks: NDArray[Any] | None
    alibi_slopes: NDArray[Any] | None


def _reference(
    r: Rounding,
    q: NDArray[Any],
    kv: NDArray[Any],
    block_table: NDArray[Any],
    query_start_loc: NDArray[Any],
    seq_lens: NDArray[Any],
    sinks: NDArray[Any] | None = None,
    alibi_slopes: NDArray[Any] | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    causal: bool = True,
) -> NDArray[Any]:
    import numpy as np

    scores = _Scores(num_heads, scale, window, softcap, causal, sinks, alibi_slopes)
    _check_borders(query_start_loc, seq_lens, q.shape[0], block_table.shape[1] * kv.shape[2], causal)
    q = r("activation", q).reshape(q.shape[0], num_kv_heads, num_heads // num_kv_heads, head_dim)
    y = np.zeros(q.shape)
    for s, (start, end) in enumerate(zip(query_start_loc[:-1].tolist(), query_start_loc[1:].tolist())):
        if start == end:
            continue
        length = int(seq_lens[s])
        first_position = length - (end - start)
        first_key = max(0, first_position - window + 1) if window else 0
        keys, values = _gather(r, kv, block_table[s], s, first_key, length)
        for rows in _runs(start, end, num_heads * max(1, length - first_key)):
            positions = np.arange(rows.start, rows.stop) - start + first_position
            # keys after the last query of a causal run are masked for all of it
            last = int(positions[-1]) + 1 - first_key if causal else keys.shape[1]
            y[rows] = _attend(r, q[rows], keys[:, :last], values[:, :last], positions, first_key, scores)
    return r("output", y.reshape(y.shape[0], num_heads * head_dim))


def _check_borders(
    query_start_loc: NDArray[Any], seq_lens: NDArray[Any], num_rows: int, capacity: int, causal: bool
) -> None:
    query_lens = query_start_loc[1:] - query_start_loc[:-1]
    if query_start_loc[0] != 0 or (query_lens < 0).any() or query_start_loc[-1] > num_rows:
        raise InvalidArgument(
            f"attention@1 query_start_loc = {query_start_loc.tolist()} must start with 0, never fall and end within "
            f"the {num_rows} rows of q"
        )
    wrong = (seq_lens < 0) | (seq_lens > capacity)
    if causal:
        wrong |= seq_lens < query_lens
    if wrong.any():
        s = int(wrong.argmax())
        least = int(query_lens[s]) if causal else 0
        raise InvalidArgument(
            f"attention@1 seq_lens[{s}] = {int(seq_lens[s])} must be at least {least} (the queries of the sequence) "
            f"and at most {capacity} (what its row of block_table can hold)"
        )


def _gather(
    r: Rounding, kv: NDArray[Any], blocks: NDArray[Any], s: int, first_key: int, length: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Keys and values [H, length - first_key, D]; no other slot is touched, whatever lies in it."""
    import numpy as np

    block_size = kv.shape[2]
    used = blocks[first_key // block_size : -(-length // block_size)]
    check_indices("attention@1", f"block_table of sequence {s}, used part", used, kv.shape[1], what="blocks in kv")
    slots = np.arange(first_key, length)
    both = kv[:, blocks[slots // block_size], slots % block_size].astype(np.float64)
    both = r("activation", both).transpose(0, 2, 1, 3)
    return both[0], both[1]


def _runs(start: int, end: int, scores_per_query: int) -> Iterator[slice]:
    step = max(1, _MAX_SCORES // scores_per_query)
    for row in range(start, end, step):
        yield slice(row, min(row + step, end))


def _attend(
    r: Rounding,
    q: NDArray[Any],
    keys: NDArray[Any],
    values: NDArray[Any],
    positions: NDArray[Any],
    first_key: int,
    how: _Scores,
) -> NDArray[Any]:
    """Rows of one sequence: q [n, H, G, D], keys and values [H, L, D] -> [n, H, G, D]."""
    import numpy as np

    n, h, g, d = q.shape
    num_keys = keys.shape[1]
    distance = positions[:, None] - (first_key + np.arange(num_keys))
    s = r.dot(q.transpose(1, 2, 0, 3).reshape(h, g * n, d), keys).reshape(h, g, n, num_keys) * how.scale
    if how.softcap:
        s = how.softcap * np.tanh(s / how.softcap)
    if how.alibi_slopes is not None:
        s -= how.alibi_slopes.reshape(h, g, 1, 1) * distance
    hidden = distance < 0 if how.causal else np.zeros(distance.shape, bool)
    if how.window:
        hidden = hidden | (distance >= how.window)
    if hidden.any():
        s[:, :, hidden] = -np.inf
    p = _softmax(r, s, None if how.sinks is None else how.sinks.reshape(h, g, 1, 1))
    p = r("probability", p).reshape(h, g * n, num_keys)
    y: NDArray[Any] = r.dot(p, values.swapaxes(-1, -2)).reshape(h, g, n, d).transpose(2, 0, 1, 3)
    return y


def _softmax(r: Rounding, s: NDArray[Any], sinks: NDArray[Any] | None) -> NDArray[Any]:
    """Over the innermost dimension; a sink takes its share of the probability, a row that sees nothing gets zeros."""
    import numpy as np

    largest = s.max(-1, keepdims=True, initial=-np.inf)
    if sinks is not None:
        largest = np.maximum(largest, sinks)
    largest = np.where(np.isneginf(largest), 0.0, largest)
    e = np.exp(s - largest)
    total = r.sum(e)
    if sinks is not None:
        total = total + np.exp(sinks - largest)
    result: NDArray[Any] = e / np.where(total == 0, 1.0, total)
    return result


def _infer(inputs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
    num_heads, num_kv_heads, head_dim = attrs["num_heads"], attrs["num_kv_heads"], attrs["head_dim"]
    if num_heads % num_kv_heads:
        raise InvalidArgument(
            f"attention@1 num_heads = {num_heads} is not a multiple of num_kv_heads = {num_kv_heads}; every KV head "
            "serves the same number of query heads"
        )
    q, kv = inputs["q"], inputs["kv"]
    check_equal("attention@1", "N of q", q.shape[1], num_heads * head_dim, "a row is num_heads heads of head_dim")
    check_equal("attention@1", "H of kv", kv.shape[3], num_kv_heads, "the cache holds num_kv_heads heads")
    check_equal("attention@1", "D of kv", kv.shape[4], head_dim, "a head of the cache has head_dim elements")
    num_seqs, num_borders = inputs["seq_lens"].shape[0], inputs["query_start_loc"].shape[0]
    if isinstance(num_seqs, int):
        check_equal("attention@1", "Q of query_start_loc", num_borders, num_seqs + 1, "S sequences have S + 1 borders")
    for name in ("sinks", "alibi_slopes"):
        if name in inputs:
            check_equal("attention@1", f"Hq of {name}", inputs[name].shape[0], num_heads, "one value per query head")
    if attrs.get("softcap", 0.0) < 0:
        raise InvalidArgument(f"attention@1 softcap = {attrs['softcap']} must be positive, or 0 for none")
    return (q,)


def _work(inputs: Specs, outputs: Specs, attrs: Attrs) -> Work:
    """Sequences are taken as equally long, and as long as a row of the block table can hold."""
    t, width = inputs["q"].resolve({})
    num_seqs, num_blocks = inputs["block_table"].resolve({})
    _, _, block_size, h, d = inputs["kv"].resolve({})
    queries = t / max(1, num_seqs)
    keys = max(queries, num_blocks * block_size)
    window = attrs.get("window") or keys
    causal = attrs.get("causal", True)
    # query i of n sees keys - n + 1 + i of them, at most `window`
    seen = keys - (queries - 1) / 2 if causal else keys
    pairs = t * min(seen, window)
    touched = int(num_seqs * min(keys, window + queries - 1))
    read = total_nbytes({n: s for n, s in inputs.items() if n != "kv"})
    read += inputs["kv"].format.nbytes((2, touched, h, d))
    return Work(int(4 * width * pairs), read, outputs["y"].nbytes())


def _refusal(rule: str, *, values: Any = None, shapes: Any = None, attrs: Any = None) -> Refusal:
    specs = {
        "q": ("f32", (2, 32)),
        "kv": ("f32", (2, 4, 4, 2, 8)),
        "block_table": ("i32", (1, 2)),
        "query_start_loc": ("i32", (2,)),
        "seq_lens": ("i32", (1,)),
    }
    good = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "scale": 0.5}
    contents = {"block_table": [[0, 1]], "query_start_loc": [0, 2], "seq_lens": [6]} | values if values else {}
    return Refusal(rule, specs | (shapes or {}), good | (attrs or {}), values=contents)


ATTENTION = Op(
    name="attention",
    version=1,
    family="attention",
    doc=(
        "Each query row attends to the keys of its own sequence, which the KV cache already holds: those of this step "
        "are written before (kv_write). One step is ragged: the rows of sequence s are query_start_loc[s] .. "
        "query_start_loc[s + 1], and the last of them has position seq_lens[s] - 1. Key j of the sequence lies in "
        "block block_table[s, j // C] at offset j % C. Query head h uses KV head h // (num_heads / num_kv_heads).\n\n"
        "The score of query i and key j is scale * q.k, then softcap * tanh(score / softcap) where softcap > 0, then "
        "alibi_slopes[h] * (j - i) is added. Key j is visible where j <= i (causal) and i - j < window (window > 0). "
        "Probabilities are the softmax over visible keys; sinks[h] is one more score whose value is zero. A row that "
        "sees no key, and a row past the last sequence, is zero. Slots beyond a sequence's length are never read. "
        "(Vaswani et al. 2017; Shazeer 2019; Ainslie et al. 2023; Kwon et al. 2023 for paging; Press et al. 2022 for "
        "ALiBi; Xiao et al. 2024 for sinks.)"
    ),
    inputs=(
        Port("q", ("T", "N"), doc="queries, num_heads heads of head_dim side by side"),
        Port(
            "kv", (2, "B", "C", "H", "D"), WEIGHTS, doc="KV cache: k and v, blocks, slots, heads, elements", layout="kv"
        ),
        Port("block_table", ("S", "P"), INDEX, doc="blocks of each sequence in order; entries past its end are unused"),
        Port("query_start_loc", ("Q",), INDEX, doc="borders of the sequences' rows in q, Q = S + 1, from 0"),
        Port("seq_lens", ("S",), INDEX, doc="keys of each sequence, those of this step included"),
        Port("sinks", ("Hq",), ("f32",), doc="score of the sink of each query head", optional=True),
        Port("alibi_slopes", ("Hq",), ("f32",), doc="slope of each query head", optional=True),
    ),
    outputs=(Port("y", ("T", "N"), doc="one row per query, heads as in q"),),
    attrs=(
        Attr("num_heads", int, "query heads", required=True, minimum=1),
        Attr("num_kv_heads", int, "KV heads; divides num_heads", required=True, minimum=1),
        Attr("head_dim", int, "elements per head", required=True, minimum=1),
        Attr("scale", float, "factor on q.k, usually 1 / sqrt(head_dim)", required=True),
        Attr("window", int, "keys that a query sees, itself included; 0: all", 0, minimum=0),
        Attr("softcap", float, "bound on scores by tanh; 0: none", 0.0),
        Attr("causal", bool, "a query sees no key after its own position; False: encoders, cross attention", True),
    ),
    reference=_reference,
    work=_work,
    check=Check("statistical"),
    rounding=("activation", "accumulate", "probability", "output"),
    infer=_infer,
    laws=(
        "physical_blocks_may_be_permuted",
        "free_slots_leave_no_trace",
        "sequences_are_independent",
        "chunked_equals_one_shot",
        "shared_prefix_equals_copied",
    ),
    refusals=(
        _refusal("num_heads is a multiple of num_kv_heads", shapes={"q": ("f32", (2, 24))}, attrs={"num_heads": 3}),
        _refusal("q has num_heads * head_dim columns", shapes={"q": ("f32", (2, 24))}),
        _refusal("the cache has num_kv_heads heads", attrs={"num_kv_heads": 4}),
        _refusal("query_start_loc has one entry more than seq_lens", shapes={"query_start_loc": ("i32", (3,))}),
        _refusal("sinks has one value per query head", shapes={"sinks": ("f32", (2,))}),
        _refusal("window is not negative", attrs={"window": -1}),
        _refusal("softcap is not negative", attrs={"softcap": -30.0}),
        _refusal("blocks exist", values={"block_table": [[0, 4]]}),
        _refusal("block ids are not negative", values={"block_table": [[-1, 0]]}),
        _refusal("a sequence fits its row of the block table", values={"seq_lens": [9]}),
        _refusal("a sequence is at least as long as its queries", values={"seq_lens": [1]}),
        _refusal("query_start_loc starts with 0", values={"query_start_loc": [1, 2]}),
        _refusal("query_start_loc ends within q", values={"query_start_loc": [0, 3]}),
    ),
)

OPS = (ATTENTION,)
