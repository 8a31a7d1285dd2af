"""kv_write and paged attention: ragged steps, shuffled blocks, NaN wherever nothing may be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from single import Case, assert_close, random

NUM_BLOCKS, BLOCK_SIZE = 24, 8


def make_case(
    parts: list[tuple[int, int]],
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 16,
    *,
    kv_format: str = "f32",
    padding: int = 0,
    seed: int = 1,
    extra: dict[str, np.ndarray] | None = None,
    **attrs: Any,
) -> Case:
    """`parts`: (queries, keys) of each sequence. Slots without a key, and unused entries, hold NaN and nonsense."""
    num_heads, num_kv_heads = heads
    rng = np.random.default_rng(seed)
    kv = np.full((2, NUM_BLOCKS, BLOCK_SIZE, num_kv_heads, head_dim), np.nan, np.float32)
    free = list(rng.permutation(NUM_BLOCKS))
    width = max(-(-keys // BLOCK_SIZE) for _, keys in parts) + 1
    table = np.full((len(parts), width), 9999, np.int32)
    for s, (_, keys) in enumerate(parts):
        for i in range(-(-keys // BLOCK_SIZE)):
            block = table[s, i] = free.pop()
            used = min(BLOCK_SIZE, keys - i * BLOCK_SIZE)
            kv[:, block, :used] = rng.standard_normal((2, used, num_kv_heads, head_dim))
    starts = np.cumsum([0] + [queries for queries, _ in parts]).astype(np.int32)
    q = random(seed + 1, int(starts[-1]) + padding, num_heads * head_dim)
    sizes = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    return Case(
        "attention",
        {**sizes, "scale": head_dim**-0.5, **attrs},
        q=q,
        kv=(kv, kv_format),
        block_table=table,
        query_start_loc=starts,
        seq_lens=np.array([keys for _, keys in parts], np.int32),
        **(extra or {}),
    )


RAGGED = [(1, 1), (5, 5), (0, 0), (1, 40), (3, 17), (7, 7)]


def check(device, case: Case) -> None:
    (y,) = case.run(device)
    assert_close(y, case.expected()[0], ulps=40, scale=4.0)


@pytest.mark.parametrize("kv_format", ["f32", "f16"])
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (4, 2), (6, 1), (8, 2)])
def test_ragged_steps_with_grouped_heads(device, heads: tuple[int, int], kv_format: str) -> None:
    check(device, make_case(RAGGED, heads, kv_format=kv_format))


@pytest.mark.parametrize("head_dim", [1, 2, 5, 32, 64, 80, 96, 100, 128, 192, 256])
def test_every_size_of_head(device, head_dim: int) -> None:
    check(device, make_case([(3, 20), (1, 66)], (2, 1), head_dim))


@pytest.mark.parametrize("keys", [1, 7, 8, 9, 63, 64, 65, 128, 130])
def test_keys_around_the_borders_of_blocks_and_tiles(device, keys: int) -> None:
    check(device, make_case([(1, keys)], kv_format="f16"))


@pytest.mark.parametrize("window", [1, 2, 8, 9, 1000])
@pytest.mark.parametrize("causal", [True, False])
def test_a_window(device, window: int, causal: bool) -> None:
    check(device, make_case(RAGGED, window=window, causal=causal))


def test_all_keys_are_visible_without_the_causal_mask(device) -> None:
    check(device, make_case([(3, 3), (2, 90), (5, 2)], causal=False))


def test_softcap_sinks_and_alibi(device) -> None:
    check(device, make_case(RAGGED, softcap=2.0, scale=1.5))
    check(device, make_case(RAGGED, extra={"sinks": np.array([0.5, -np.inf, 30.0, -4.0], np.float32)}))
    check(device, make_case(RAGGED, extra={"alibi_slopes": np.array([0.5, 0.25, 0.125, 1.0], np.float32)}))


def test_rows_past_the_last_sequence_are_zero(device) -> None:
    case = make_case([(2, 9)], padding=3)
    (y,) = case.run(device)
    assert not y[2:].any()
    check(device, case)


def test_a_peak_dominates_and_a_forbidden_one_does_not(device) -> None:
    case = make_case([(4, 70)], (1, 1), scale=200.0)
    (y,) = case.run(device)
    assert_close(y, case.expected()[0], ulps=4000, scale=4.0)


def test_a_row_is_the_same_alone_and_in_a_batch(device) -> None:
    batch = make_case([(3, 20), (1, 66), (2, 9)])
    together = batch.run(device)[0]
    for s, rows in enumerate((slice(0, 3), slice(3, 4), slice(4, 6))):
        alone = make_case([(3, 20), (1, 66), (2, 9)])
        for port in ("block_table", "seq_lens"):
            alone.values[port] = batch.values[port][s : s + 1]
            alone.stored[port] = (
                type(alone.stored[port][0])(alone.stored[port][0].format, alone.values[port].shape),
                b"",
            )
        alone.values["q"] = batch.values["q"][rows]
        alone.stored["q"] = (type(alone.stored["q"][0])(alone.stored["q"][0].format, alone.values["q"].shape), b"")
        borders = np.array([0, rows.stop - rows.start], np.int32)
        alone.values["query_start_loc"] = borders
        spec = alone.stored["query_start_loc"][0]
        alone.stored["query_start_loc"] = (type(spec)(spec.format, borders.shape), b"")
        np.testing.assert_array_equal(alone.run(device)[0], together[rows])


@pytest.mark.parametrize("kv_format", ["f32", "f16"])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 1), (2, 64), (3, 5)])
def test_kv_write_touches_its_slots_alone(device, kv_format: str, heads: int, head_dim: int) -> None:
    kv = random(1, 2, 6, 4, heads, head_dim)
    kv[:, 2] = np.nan
    slots = np.array([23, -1, 0, 9, 4], np.int32)
    k, v = random(2, 5, heads * head_dim, scale=100), random(3, 5, heads * head_dim)
    case = Case("kv_write", kv=(kv, kv_format), k=k, v=v, slot_mapping=slots)
    expected = case.values["kv"].copy()
    for part, data in enumerate((k, v)):
        for row, slot in enumerate(slots):
            if slot >= 0:
                expected[part, slot // 4, slot % 4] = data[row].reshape(heads, head_dim).astype(expected.dtype)
    np.testing.assert_array_equal(case.run(device)[0], expected)


@pytest.mark.parametrize("kv_format", ["f32", "f16"])
def test_blocks_are_copied_bit_for_bit(device, kv_format: str) -> None:
    kv = random(1, 2, 6, 4, 2, 5)
    kv[:, 2] = np.nan
    blocks = {"source_blocks": np.array([2, 2, 0], np.int32), "target_blocks": np.array([5, 1, 3], np.int32)}
    case = Case("kv_copy_blocks", kv=(kv, kv_format), **blocks)
    expected = case.values["kv"].copy()
    expected[:, [5, 1, 3]] = expected[:, [2, 2, 0]]
    np.testing.assert_array_equal(case.run(device)[0], expected)


@pytest.mark.parametrize("kv_format", ["f32", "f16"])
def test_an_exported_cache_comes_back_by_an_import(device, kv_format: str) -> None:
    kv, ids = random(1, 2, 6, 4, 2, 5), np.array([4, 0], np.int32)
    case = Case("kv_export", kv=(kv, kv_format), block_ids=ids)
    (data,) = case.run(device)
    np.testing.assert_array_equal(data, case.values["kv"][:, ids])
    into = Case("kv_import", kv=(random(2, 2, 6, 4, 2, 5), kv_format), data=data, block_ids=ids[::-1].copy())
    expected = into.values["kv"].copy()
    expected[:, ids[::-1]] = data
    np.testing.assert_array_equal(into.run(device)[0], expected)
