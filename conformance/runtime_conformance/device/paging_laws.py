"""Laws of the paged cache: where blocks lie, what lies in free ones, and how a step is cut must not be seen."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from runtime.dtypes import FORMATS, can_encode, encode
from runtime_conformance.case import Case, Tensor
from runtime_conformance.device.laws import LAWS, Answer, Law, NotEvaluable, Runner, Stored

Result = tuple[list[str], list[Answer]]


def _equal(a: Answer, b: Answer) -> bool:
    import numpy as np

    return all(np.array_equal(x, y) for x, y in zip(a, b))


def _numbers(case: Case, stored: Stored, name: str) -> Any:
    import numpy as np

    return stored[name].view("<i4").reshape(case.inputs[name].shape).astype(np.int64)


def _packed(values: Any) -> Any:
    import numpy as np

    return np.ascontiguousarray(values, dtype="<i4").reshape(-1).view(np.uint8)


def _blocks(case: Case, stored: Stored) -> Any:
    """The stored cache as [2, B, bytes of a block]."""
    _, num_blocks, *_ = case.inputs["kv"].shape
    return stored["kv"].reshape(2, num_blocks, -1)


def _used(case: Case, stored: Stored) -> list[list[int]]:
    """Blocks of every sequence."""
    table, size = _numbers(case, stored, "block_table"), case.inputs["kv"].shape[2]
    lengths = _numbers(case, stored, "seq_lens")
    return [table[s, : -(-int(n) // size)].tolist() for s, n in enumerate(lengths)]


def _permuted(runner: Runner, case: Case, stored: Stored) -> Result:
    """Another order of the physical blocks: the same bits."""
    import numpy as np

    num_blocks = case.inputs["kv"].shape[1]
    order = np.roll(np.arange(num_blocks)[::-1], 1)
    moved = np.empty_like(_blocks(case, stored))
    moved[:, order] = _blocks(case, stored)
    table = order[_numbers(case, stored, "block_table")]
    other = {**stored, "kv": moved.reshape(-1), "block_table": _packed(table)}
    if "slot_mapping" in stored:
        slots, size = _numbers(case, stored, "slot_mapping"), case.inputs["kv"].shape[2]
        other["slot_mapping"] = _packed(np.where(slots < 0, slots, order[slots // size] * size + slots % size))
    a, b = runner.run(case, stored)[0], runner.run(case, other)[0]
    return ([] if np.array_equal(a, b) else ["physical blocks in another order change the result"]), []


def _free_slots(runner: Runner, case: Case, stored: Stored) -> Result:
    """NaN in every slot that belongs to nobody: the same bits."""
    import numpy as np

    fmt, shape = case.inputs["kv"].format, case.inputs["kv"].shape
    if FORMATS[fmt].is_quantized or not can_encode(FORMATS[fmt]):
        raise NotEvaluable(f"a cache in {fmt} cannot hold NaN in one slot")
    values = FORMATS[fmt].decode(stored["kv"], shape).astype(np.float64)
    is_free = np.ones(shape[1:3], bool)
    for blocks, length in zip(_used(case, stored), _numbers(case, stored, "seq_lens").tolist()):
        for position in range(int(length)):
            is_free[blocks[position // shape[2]], position % shape[2]] = False
    values[:, is_free] = np.nan
    other = {**stored, "kv": np.frombuffer(encode(FORMATS[fmt], values), np.uint8)}
    a, b = runner.run(case, stored)[0], runner.run(case, other)[0]
    return ([] if np.array_equal(a, b) else ["NaN in free slots reaches the result"]), []


def _table_tail(runner: Runner, case: Case, stored: Stored) -> Result:
    """Entries of the block table past the end of a sequence: the same bits, whatever they are."""
    import numpy as np

    table = _numbers(case, stored, "block_table")
    for s, blocks in enumerate(_used(case, stored)):
        table[s, len(blocks) :] = case.inputs["kv"].shape[1] - 1
    a, b = runner.run(case, stored)[0], runner.run(case, {**stored, "block_table": _packed(table)})[0]
    return ([] if np.array_equal(a, b) else ["unused entries of the block table change the result"]), []


def _without_others(case: Case, stored: Stored, s: int) -> tuple[Case, Stored, slice]:
    """Sequence `s` alone."""
    starts = _numbers(case, stored, "query_start_loc")
    rows = slice(int(starts[s]), int(starts[s + 1]))
    count = rows.stop - rows.start
    inputs, data = dict(case.inputs), dict(stored)
    q = case.inputs["q"]
    inputs["q"] = Tensor(q.format, (count, q.shape[1]), q.role, q.data)
    data["q"] = stored["q"].reshape(q.shape[0], -1)[rows].reshape(-1)
    table = case.inputs["block_table"]
    inputs["block_table"] = Tensor("i32", (1, table.shape[1]), data=table.data)
    data["block_table"] = _packed(_numbers(case, stored, "block_table")[s])
    inputs["seq_lens"], data["seq_lens"] = Tensor("i32", (1,)), _packed(_numbers(case, stored, "seq_lens")[s : s + 1])
    inputs["query_start_loc"], data["query_start_loc"] = Tensor("i32", (2,)), _packed([0, count])
    return case.but(inputs=inputs), data, rows


def _independent(runner: Runner, case: Case, stored: Stored) -> Result:
    """Every sequence alone, before the judge; the same bits where batch invariance is declared."""
    import numpy as np

    whole = runner.run(case, stored)[0]
    joined = np.array(whole)
    for s in range(case.inputs["seq_lens"].shape[0]):
        alone, data, rows = _without_others(case, stored, s)
        if rows.stop == rows.start:
            continue
        runner.require(alone)
        joined[rows] = runner.run(alone, data)[0]
    if runner.is_batch_invariant and not np.array_equal(whole, joined):
        return ["sequences alone differ from a batch, although batch_invariant is declared"], []
    return [], [[joined]]


def _chunked(runner: Runner, case: Case, stored: Stored) -> Result:
    """The queries of every sequence one by one, each with the keys it may see: before the judge."""
    import numpy as np

    joined = np.array(runner.run(case, stored)[0])
    for s in range(case.inputs["seq_lens"].shape[0]):
        alone, data, rows = _without_others(case, stored, s)
        count = rows.stop - rows.start
        length = int(_numbers(alone, data, "seq_lens")[0])
        q = data["q"].reshape(max(1, count), -1)
        for i in range(count):
            one = dict(alone.inputs)
            one["q"] = Tensor(case.inputs["q"].format, (1, case.inputs["q"].shape[1]))
            step = {
                **data,
                "q": q[i],
                "query_start_loc": _packed([0, 1]),
                "seq_lens": _packed([length - count + i + 1]),
            }
            single = alone.but(inputs=one)
            runner.require(single)
            joined[rows.start + i] = runner.run(single, step)[0]
    return [], [[joined]]


def _shared_prefix(runner: Runner, case: Case, stored: Stored) -> Result:
    """Two sequences that share their first block, and two with copies of it: the same bits."""
    import numpy as np

    used = _used(case, stored)
    donor, taker = 0, 1
    table, num_blocks = _numbers(case, stored, "block_table"), case.inputs["kv"].shape[1]
    free = next(b for b in range(num_blocks) if all(b not in blocks for blocks in used))
    shared, copied = table.copy(), table.copy()
    shared[taker, 0], copied[taker, 0] = used[donor][0], free
    blocks = np.array(_blocks(case, stored))
    blocks[:, free] = blocks[:, used[donor][0]]
    kv = blocks.reshape(-1)
    a = runner.run(case, {**stored, "kv": kv, "block_table": _packed(shared)})[0]
    b = runner.run(case, {**stored, "kv": kv, "block_table": _packed(copied)})[0]
    return ([] if np.array_equal(a, b) else ["a shared first block gives another result than its copy"]), []


def _slot_order(runner: Runner, case: Case, stored: Stored) -> Result:
    """Rows of a write in reverse order: the same cache."""
    from runtime_conformance.device.laws import with_rows

    order = list(range(case.inputs["k"].shape[0]))[::-1]
    turned, data = with_rows(case, stored, order)
    return ([] if _equal(runner.run(case, stored), runner.run(turned, data)) else ["the order of rows matters"]), []


def _export_import(runner: Runner, case: Case, stored: Stored) -> Result:
    """Blocks exported, then imported into an empty cache, then exported again: the same bits."""
    import numpy as np

    kv, ids = case.inputs["kv"], case.inputs["block_ids"]
    first = Case("kv_export@1", {"kv": kv, "block_ids": ids}, {}, "exact")
    shape = (2, ids.shape[0], *kv.shape[2:])
    bring = Case("kv_import@1", {"kv": kv, "data": Tensor("f32", shape), "block_ids": ids}, {}, "exact")
    for other in (first, bring):
        runner.require(other)
    data = np.ascontiguousarray(runner.run(first, {"kv": stored["kv"], "block_ids": stored["block_ids"]})[0]).reshape(
        -1
    )
    empty = {"kv": np.zeros_like(stored["kv"]), "data": data, "block_ids": stored["block_ids"]}
    cache = np.ascontiguousarray(runner.run(bring, empty)[0]).reshape(-1)
    again = runner.run(first, {"kv": cache, "block_ids": stored["block_ids"]})[0].reshape(-1)
    return ([] if np.array_equal(again, data) else ["import of an export is not the identity"]), []


def _copied_blocks(runner: Runner, case: Case, stored: Stored) -> Result:
    import numpy as np

    num_blocks = case.inputs["kv"].shape[1]
    cache = runner.run(case, stored)[0].reshape(2, num_blocks, -1)
    sources, targets = (_numbers(case, stored, n) for n in ("source_blocks", "target_blocks"))
    return ([] if np.array_equal(cache[:, sources], cache[:, targets]) else ["targets do not equal their sources"]), []


def _permuted_sequences(runner: Runner, case: Case, stored: Stored) -> Result:
    """Sequences in reverse order, with their rows: as `_independent`."""
    import numpy as np

    starts = _numbers(case, stored, "query_start_loc").tolist()
    spans = [list(range(a, b)) for a, b in pairwise(starts)][::-1]
    rows = [row for span in spans for row in span]
    q = stored["q"].reshape(case.inputs["q"].shape[0], -1)[rows].reshape(-1)
    other = {**stored, "q": q, "query_start_loc": _packed(np.cumsum([0, *map(len, spans)]))}
    other |= {n: _packed(_numbers(case, stored, n)[::-1]) for n in ("block_table", "seq_lens")}
    whole = runner.run(case, stored)[0]
    back = np.array(whole)
    back[rows] = runner.run(case, other)[0]
    if runner.is_batch_invariant and not np.array_equal(whole, back):
        return ["sequences in another order differ, although batch_invariant is declared"], []
    return [], [[back]]


def _padded(runner: Runner, case: Case, stored: Stored) -> Result:
    """Rows after the last sequence, full of NaN, as steps have them that are padded to a size: before the judge."""
    import numpy as np

    q = case.inputs["q"]
    num_rows, more = q.shape[0], 3
    longer = case.but(inputs={**case.inputs, "q": Tensor(q.format, (num_rows + more, q.shape[1]))})
    runner.require(longer)
    padding = np.full(more * q.shape[1], np.nan, np.float32)
    data = {**stored, "q": np.concatenate([stored["q"], np.frombuffer(encode(FORMATS[q.format], padding), np.uint8)])}
    whole, part = runner.run(case, stored)[0], runner.run(longer, data)[0][:num_rows]
    if runner.is_batch_invariant and not np.array_equal(whole, part):
        return ["padding rows change the others, although batch_invariant is declared"], []
    return [], [[np.ascontiguousarray(part)]]


def _several(case: Case) -> bool:
    return case.op == "attention@1" and case.inputs["seq_lens"].shape[0] > 1


def _add(name: str, applies: Any, test: Any) -> None:
    LAWS[name] = Law(name, applies, test)


_add("physical_blocks_may_be_permuted", lambda c: "block_table" in c.inputs, _permuted)
_add("free_slots_leave_no_trace", lambda c: c.op == "attention@1", _free_slots)
_add("unused_table_entries_leave_no_trace", _several, _table_tail)
_add("sequences_are_independent", _several, _independent)
_add(
    "chunked_equals_one_shot",
    lambda c: c.op == "attention@1" and c.attrs.get("causal", True) and c.inputs["q"].shape[0] <= 24,
    _chunked,
)
_add("sequences_may_be_permuted", _several, _permuted_sequences)
_add("padding_rows_change_nothing", lambda c: c.op == "attention@1", _padded)
_add("shared_prefix_equals_copied", lambda c: _several(c) and not c.attrs.get("window"), _shared_prefix)
_add("order_of_rows_is_irrelevant", lambda c: c.op == "kv_write@1", _slot_order)
_add("import_of_export_is_identity", lambda c: c.op == "kv_export@1", _export_import)
_add("source_equals_target_afterwards", lambda c: True, _copied_blocks)
