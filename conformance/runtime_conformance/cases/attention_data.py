"""Contents of KV caches: ordinary keys, keys that make a fault visible, and keys whose result is exact.

    exact    key j carries its own number in signs; a query asks for one visible key with a score so much larger that
             its probability is 1 in every format, and the values are small integers
    peaked   the newest key, the first visible one and one at a block border get a large share; the next key and the
             one just outside of the window, which are forbidden, would get a larger one
    others   independent numbers
Slots that no sequence uses hold large finite garbage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from runtime.dtypes import FORMATS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime_conformance.case import Case
    from runtime_conformance.data import Stream

CODE_STRENGTH = 128.0
"""Size of a query's elements in exact cases: two codes differ in one sign at least, which makes exp(-256)."""


def target_of(row: int, first: int, last: int) -> int:
    """The key that query `row` asks for in an exact case: the newest, the oldest visible, or one between."""
    choices = (last, first, (first + last) // 2, max(first, last - 1), min(last, first + 1))
    return choices[row % len(choices)]


def code(number: int, head_dim: int) -> NDArray[Any]:
    """`number` as signs, least significant bit first, repeated over the head."""
    import numpy as np

    width = min(head_dim, 12)
    signs = np.array([1.0 if number >> bit & 1 else -1.0 for bit in range(width)])
    return np.resize(signs, head_dim)


def rows_of(case: Case) -> Iterator[tuple[int, int, int, int, int]]:
    """(row of q, sequence, its position, first visible key, last visible key) for every query."""
    starts = case.inputs["query_start_loc"].data[1:]
    lengths = case.inputs["seq_lens"].data[1:]
    window = case.attrs.get("window") or 0
    causal = case.attrs.get("causal", True)
    for s, start in enumerate(starts[:-1]):
        end = starts[s + 1]
        for row in range(start, end):
            position = lengths[s] - (end - start) + row - start
            first = max(0, position - window + 1) if window else 0
            yield row, s, position, first, position if causal else lengths[s] - 1


def slot_of(case: Case, sequence: int, position: int) -> tuple[int, int] | None:
    """Block and offset of a position, or None past the row of the block table."""
    table = case.inputs["block_table"]
    block_size = case.inputs["kv"].shape[2]
    column = position // block_size
    if position < 0 or column >= table.shape[1]:
        return None
    return int(table.data[1 + sequence * table.shape[1] + column]), position % block_size


def exact_query(case: Case) -> NDArray[Any]:
    """Queries [T, N] of an exact case."""
    import numpy as np

    heads, d = case.attrs["num_heads"], case.attrs["head_dim"]
    q = np.zeros((case.inputs["q"].shape[0], heads, d))
    for row, _, _, first, last in rows_of(case):
        for head in range(heads):
            q[row, head] = CODE_STRENGTH * code(target_of(row + head, first, last), d)
    return q.reshape(case.inputs["q"].shape)


def fill_kv(case: Case, stream: Stream, before: Mapping[str, Any]) -> NDArray[Any]:
    """The cache [2, B, C, H, D] as the first word of its `data` says, or the queries that go with it."""
    import numpy as np

    shape = case.inputs["kv"].shape
    kind = case.inputs["kv"].data[0]
    garbage = case.inputs["kv"].data[1] if len(case.inputs["kv"].data) > 1 else 1000.0
    kv = stream.integers(0, 1, shape) * 2.0 * garbage - garbage
    table, lengths = case.inputs["block_table"], case.inputs["seq_lens"].data[1:]
    queries = _queries(case, before) if kind == "kv_peaked" else None
    for s, length in enumerate(lengths):
        for position in range(length):
            block, offset = slot_of(case, s, position)  # type: ignore[misc]  # a position of the sequence has a slot
            if kind == "kv_exact":
                kv[0, block, offset] = code(position, shape[4])
                kv[1, block, offset] = _exact_values(s, position, shape[3], shape[4])
            else:
                kv[:, block, offset] = stream.bell((2, *shape[3:]))
    if queries is not None:
        _add_peaks(case, kv, queries)
    assert table.role == "input"
    return np.asarray(kv)


def _exact_values(sequence: int, position: int, heads: int, d: int) -> NDArray[Any]:
    import numpy as np

    h, e = np.arange(heads)[:, None], np.arange(d)[None, :]
    return ((h * 31 + position * 7 + e * 3 + sequence * 5) % 15 - 7).astype(float)


def _queries(case: Case, before: Mapping[str, Any]) -> NDArray[Any]:
    """Queries as one vector per row and KV head: the mean over the heads that share it."""
    import numpy as np

    tensor = case.inputs["q"]
    q = FORMATS[tensor.format].decode(np.ascontiguousarray(before["q"]), tensor.shape).astype(float)
    kv_heads, d = case.attrs["num_kv_heads"], case.attrs["head_dim"]
    group = case.attrs["num_heads"] // kv_heads
    mean = q.reshape(tensor.shape[0], kv_heads, group, d).mean(2)
    return np.asarray(mean / np.sqrt((mean * mean).mean(-1, keepdims=True) + 1e-9))


def _add_peaks(case: Case, kv: NDArray[Any], queries: NDArray[Any]) -> None:
    d = case.attrs["head_dim"]
    strength = 3.0 / (case.attrs["scale"] * d)
    window = case.attrs.get("window") or 0
    for row, s, position, first, last in rows_of(case):
        wanted = [(last, 1.0), (first, 0.9), ((first + last) // 2, 0.95)]
        wanted += [(position + 1, 1.6)] if case.attrs.get("causal", True) else []
        wanted += [(position - window, 1.6)] if window else []
        for key, share in wanted:
            slot = slot_of(case, s, key)
            if slot is None or (key > last and key < case.inputs["seq_lens"].data[1 + s]):
                continue  # a later query of this step has its own newest key there
            kv[0, slot[0], slot[1]] = queries[row] * strength * share
