"""The KV cache: writing, copying, exporting and importing."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.ops import CATALOGUE, EXACT, Rounding


def cache() -> np.ndarray:
    return np.full((2, 3, 2, 1, 2), np.nan)


def run(name: str, kv: np.ndarray, rounding: Rounding = EXACT, **inputs: Any) -> np.ndarray:
    data = {n: np.asarray(v) for n, v in inputs.items()}
    return CATALOGUE[f"{name}@1"].run_reference(rounding, {"kv": kv, **data}, {})[0]


def test_rows_go_to_their_slots_and_minus_one_skips():
    kv = cache()
    out = run("kv_write", kv, k=[[1.0, 2], [3, 4], [5, 6]], v=[[10.0, 20], [30, 40], [50, 60]], slot_mapping=[5, -1, 2])
    assert out is kv
    assert kv[0, 2, 1, 0].tolist() == [1, 2]
    assert kv[1, 2, 1, 0].tolist() == [10, 20]
    assert kv[0, 1, 0, 0].tolist() == [5, 6]
    assert kv[1, 1, 0, 0].tolist() == [50, 60]
    assert np.isnan(kv).sum() == kv.size - 8


def test_keys_and_values_are_rounded_to_the_format_of_the_cache():
    kv = cache()
    run("kv_write", kv, Rounding({"kv": "f16"}, "nearest"), k=[[0.1, 1]], v=[[2049.0, 1]], slot_mapping=[0])
    assert kv[:, 0, 0, 0, 0].tolist() == [0.0999755859375, 2048]


def test_a_cache_that_is_a_view_is_changed_in_place():
    storage = np.zeros((3, 2, 2, 1, 2), np.float32)
    run("kv_write", storage.transpose(2, 0, 1, 3, 4), k=[[1.0, 2]], v=[[3.0, 4]], slot_mapping=[3])
    assert storage[1, 1].reshape(-1).tolist() == [1, 2, 3, 4]


def test_blocks_are_copied_bit_for_bit():
    kv = np.arange(12.0).reshape(2, 3, 2, 1, 1)
    run("kv_copy_blocks", kv, source_blocks=[0, 0], target_blocks=[2, 1])
    assert kv[0].reshape(-1).tolist() == [0, 1, 0, 1, 0, 1]
    assert kv[1].reshape(-1).tolist() == [6, 7, 6, 7, 6, 7]


def test_importing_an_export_elsewhere_is_the_identity():
    kv = np.random.default_rng(0).standard_normal((2, 3, 2, 1, 2))
    data = run("kv_export", kv, block_ids=[2, 0])
    assert data.shape == (2, 2, 2, 1, 2)
    assert (data[:, 0] == kv[:, 2]).all()
    other = cache()
    run("kv_import", other, data=data, block_ids=[1, 0])
    assert other[:, 1].tobytes() == kv[:, 2].tobytes()
    assert other[:, 0].tobytes() == kv[:, 0].tobytes()
    assert np.isnan(other[:, 2]).all()


def test_nothing_to_do_changes_nothing():
    kv = cache()
    none = np.zeros(0, np.int64)
    run("kv_write", kv, k=np.zeros((0, 2)), v=np.zeros((0, 2)), slot_mapping=none)
    run("kv_copy_blocks", kv, source_blocks=none, target_blocks=none)
    run("kv_import", kv, data=np.zeros((2, 0, 2, 1, 2)), block_ids=none)
    assert np.isnan(kv).all()
