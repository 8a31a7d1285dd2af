"""Native attention over shuffled blocks with every feature: right within its numerics, and the same bits every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from native_device import OneOp, assert_judged, open_device

from runtime.errors import InvalidArgument
from runtime_cpu.device import NativeDevice
from runtime_cpu.native import Library

KV_FORMATS = ("f32", "f16", "bf16", "q8_0")
FEATURES: list[dict[str, Any]] = [{}, {"window": 20}, {"softcap": 5.0}, {"causal": False}, {"sinks": 1, "alibi": 1}]


def make(
    kv_format: str,
    *,
    head_dim: int = 64,
    kv_heads: int = 2,
    group: int = 3,
    lengths: tuple[tuple[int, int], ...] = ((1, 100), (4, 65), (3, 3), (0, 0), (40, 130)),
    features: dict[str, Any] | None = None,
    poison: bool = False,
    block_size: int = 64,
    seed: int = 0,
) -> OneOp:
    """`lengths` are (queries, keys) per sequence; `poison` puts NaN wherever no key of a sequence lies."""
    rng = np.random.default_rng(seed)
    attrs = {"num_heads": kv_heads * group, "num_kv_heads": kv_heads, "head_dim": head_dim, "scale": head_dim**-0.5}
    attrs |= {k: v for k, v in (features or {}).items() if k not in ("sinks", "alibi")}
    width = max(1, *(-(-keys // block_size) for _, keys in lengths))
    num_blocks = width * len(lengths) + 2
    table = rng.permutation(num_blocks)[: width * len(lengths)].reshape(len(lengths), width).astype(np.int32)
    kv = rng.standard_normal((2, num_blocks, block_size, kv_heads, head_dim)).astype(np.float32)
    if poison:
        used = np.zeros((num_blocks, block_size), bool)
        for row, (_, keys) in enumerate(lengths):
            slots = np.arange(keys)
            used[table[row, slots // block_size], slots % block_size] = True
        kv[:, ~used] = np.nan
    borders = np.cumsum([0, *(queries for queries, _ in lengths)]).astype(np.int32)
    inputs = {
        "q": rng.standard_normal((int(borders[-1]) + 1, kv_heads * group * head_dim)).astype(np.float32),
        "block_table": table,
        "query_start_loc": borders,
        "seq_lens": np.array([keys for _, keys in lengths], np.int32),
    }
    if features and "sinks" in features:
        inputs["sinks"] = rng.standard_normal(kv_heads * group).astype(np.float32)
    if features and "alibi" in features:
        inputs["alibi_slopes"] = (rng.random(kv_heads * group) * 0.1).astype(np.float32)
    return OneOp("attention", inputs, attrs, kv=(kv_format, kv))


# Judging takes two dozen noisy runs of the reference per case: one case of each row and column is in the light suite.
LIGHT = {("plain", "f16"), ("window", "bf16"), ("window", "f32"), ("sinks-alibi", "f16"), ("window", "q8_0")}
JUDGED = [
    pytest.param(features, fmt, id=f"{name}-{fmt}", marks=() if (name, fmt) in LIGHT else pytest.mark.slow)
    for name, features in zip(("plain", "window", "softcap", "encoder", "sinks-alibi"), FEATURES, strict=True)
    for fmt in KV_FORMATS
]


@pytest.mark.parametrize(("features", "kv_format"), JUDGED)
def test_attention_deviates_no_more_than_declared(
    devices: dict[str, NativeDevice], kv_format: str, features: dict[str, Any]
) -> None:
    op = make(kv_format, features=features)
    for device in devices.values():
        assert_judged(op, device, 8)


@pytest.mark.parametrize(("head_dim", "group"), [(24, 1), (80, 2), (96, 7), (128, 4), (256, 8), (64, 40)])
def test_any_head_size_and_group_will_do(device: NativeDevice, head_dim: int, group: int) -> None:
    for kv_format in ("bf16", "f16"):
        assert_judged(make(kv_format, head_dim=head_dim, group=group, lengths=((1, 70), (9, 40))), device, 8)


@pytest.mark.parametrize("block_size", [32, 96, 128])
def test_other_block_sizes_will_do(device: NativeDevice, block_size: int) -> None:
    assert_judged(make("bf16", block_size=block_size), device, 8)


@pytest.mark.parametrize("kv_format", ["f32", "f16", "bf16"])
def test_what_lies_in_free_slots_is_never_seen(devices: dict[str, NativeDevice], kv_format: str) -> None:
    for features in ({}, {"window": 20}, {"window": 33}):
        clean, dirty = make(kv_format, features=features), make(kv_format, features=features, poison=True)
        for device in devices.values():
            (y,) = dirty.run(device)
            assert np.isfinite(y).all()
            assert np.array_equal(y, clean.run(device)[0])


def test_rows_past_the_last_sequence_are_zero(device: NativeDevice) -> None:
    assert not make("bf16").run(device)[0][-1].any()


def rows_of(op: OneOp, device: NativeDevice, sequence: int) -> np.ndarray:
    start, end = op.arrays["query_start_loc"][sequence : sequence + 2]
    return op.run(device)[0][start:end]


def only(op: OneOp, sequence: int, first: int, count: int) -> OneOp:
    """The same cache, and of one sequence the queries first .. first + count - 1 alone, as a chunk would have them."""
    start, end = (int(i) for i in op.arrays["query_start_loc"][sequence : sequence + 2])
    keys = int(op.arrays["seq_lens"][sequence]) - (end - start) + first + count
    inputs = op.arrays | {
        "q": op.arrays["q"][start + first : start + first + count],
        "block_table": op.arrays["block_table"][sequence : sequence + 1],
        "query_start_loc": np.array([0, count], np.int32),
        "seq_lens": np.array([keys], np.int32),
    }
    return OneOp("attention", inputs, op.attrs, kv=op.kv)


@pytest.mark.parametrize("kv_format", KV_FORMATS)
@pytest.mark.parametrize("features", [{}, {"window": 600}, {"sinks": 1}], ids=["plain", "window", "sinks"])
def test_a_row_has_the_same_bits_in_any_batch_and_chunk(
    device: NativeDevice, kv_format: str, features: dict[str, Any]
) -> None:
    op = make(kv_format, lengths=((1, 1100), (60, 1300), (5, 70)), features=features, kv_heads=2, group=4)
    whole = [rows_of(op, device, s) for s in range(3)]
    for sequence, first, count in ((0, 0, 1), (1, 0, 60), (1, 13, 1), (1, 7, 20), (1, 59, 1), (2, 0, 3), (2, 3, 2)):
        part = only(op, sequence, first, count).run(device)[0]
        assert np.array_equal(part, whole[sequence][first : first + count]), (sequence, first, count)


@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_the_number_of_threads_changes_no_bit(library: Library, kv_format: str) -> None:
    op = make(kv_format, lengths=((1, 1100), (60, 700), (1, 40)))
    found = []
    for threads in (1, 2, 3):
        device = open_device(library, threads=threads)
        found.append(op.run(device)[0])
        device.close()
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_a_cache_comes_back_as_it_was_stored(device: NativeDevice, kv_format: str) -> None:
    rng = np.random.default_rng(2)
    kv = rng.standard_normal((2, 3, 64, 2, 64)).astype(np.float32)
    k, v = (rng.standard_normal((4, 128)).astype(np.float32) for _ in range(2))
    op = OneOp("kv_write", {"k": k, "v": v, "slot_mapping": np.array([64, -1, 191, 0], np.int32)}, kv=(kv_format, kv))
    assert_judged(op, device, 4)
    blocks = {"source_blocks": np.array([0], np.int32), "target_blocks": np.array([2], np.int32)}
    assert_judged(OneOp("kv_copy_blocks", blocks, kv=(kv_format, kv)), device, 2)
    export = OneOp("kv_export", {"block_ids": np.array([2, 0], np.int32)}, kv=(kv_format, kv))
    assert np.array_equal(export.run(device)[0], export.reference()[0].astype(np.float32))
    data = rng.standard_normal((2, 1, 64, 2, 64)).astype(np.float32)
    assert_judged(
        OneOp("kv_import", {"data": data, "block_ids": np.array([1], np.int32)}, kv=(kv_format, kv)), device, 4
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"block_table": [[0, 9]]}, r"block_table\[1\] = 9 is outside 0..3"),
        ({"block_table": [[-1, 0]]}, r"block_table\[0\] = -1 is outside 0..3"),
        ({"seq_lens": [129]}, r"seq_lens\[0\] = 129 must be at least the 2 queries of the sequence and at most 128"),
        ({"seq_lens": [1]}, r"seq_lens\[0\] = 1 must be at least the 2 queries"),
        ({"query_start_loc": [1, 2]}, "query_start_loc starts with 1, not with 0"),
        ({"query_start_loc": [0, 4]}, r"query_start_loc\[1\] = 4 must not fall and must be within the 3 rows"),
    ],
)
def test_a_step_that_breaks_a_rule_is_refused(device: NativeDevice, changed: dict[str, Any], message: str) -> None:
    op = make("bf16", lengths=((2, 70),))
    op.arrays |= {name: np.array(values, np.int32) for name, values in changed.items()}
    with pytest.raises(InvalidArgument, match=message):
        op.run(device)


@pytest.mark.parametrize(
    ("slots", "message"),
    [([0, 192], r"slot_mapping\[1\] = 192 is outside -1..191"), ([7, 7], "slot_mapping holds slot 7 twice")],
)
def test_a_slot_that_does_not_exist_or_occurs_twice_is_refused(
    device: NativeDevice, slots: list[int], message: str
) -> None:
    rows = np.zeros((2, 128), np.float32)
    inputs = {"k": rows, "v": rows, "slot_mapping": np.array(slots, np.int32)}
    with pytest.raises(InvalidArgument, match=message):
        OneOp("kv_write", inputs, kv=("bf16", np.zeros((2, 3, 64, 2, 64), np.float32))).run(device)
