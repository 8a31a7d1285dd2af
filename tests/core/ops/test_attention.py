"""attention against nested loops, and the laws of paging."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from runtime.ops import CATALOGUE, EXACT
from runtime.ops import attention as attention_module

ATTENTION = CATALOGUE["attention@1"]


def brute_force(inputs: dict[str, Any], attrs: dict[str, Any]) -> np.ndarray:
    """One query, one head, one key at a time, straight from the definition."""
    q, kv, table = inputs["q"], inputs["kv"], inputs["block_table"]
    d, heads_per_kv, size = attrs["head_dim"], attrs["num_heads"] // attrs["num_kv_heads"], kv.shape[2]
    y = np.zeros_like(q)
    for s, length in enumerate(inputs["seq_lens"]):
        start, end = inputs["query_start_loc"][s : s + 2]
        for row in range(start, end):
            i = length - (end - row)
            for h in range(attrs["num_heads"]):
                query = q[row, h * d : (h + 1) * d]
                total = math.exp(inputs["sinks"][h]) if "sinks" in inputs else 0.0
                weighted = np.zeros(d)
                for j in range(length):
                    if (attrs["causal"] and j > i) or (attrs["window"] and i - j >= attrs["window"]):
                        continue
                    key, value = kv[:, table[s, j // size], j % size, h // heads_per_kv]
                    score = attrs["scale"] * sum(a * b for a, b in zip(query, key))
                    if attrs["softcap"]:
                        score = attrs["softcap"] * math.tanh(score / attrs["softcap"])
                    if "alibi_slopes" in inputs:
                        score += inputs["alibi_slopes"][h] * (j - i)
                    total += math.exp(score)
                    weighted += math.exp(score) * value
                if total:
                    y[row, h * d : (h + 1) * d] = weighted / total
    return y


def sample(seed: int, *, seq_lens: list[int], query_lens: list[int], optional: tuple[str, ...] = (), **attrs: Any):
    """Inputs and attributes of a ragged step; every slot of the cache that belongs to nobody holds NaN."""
    rng = np.random.default_rng(seed)
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
    num_seqs, block_size, num_blocks = len(seq_lens), 3, 4 * len(seq_lens) + 2
    table = rng.permutation(num_blocks)[: 4 * num_seqs].reshape(num_seqs, 4)
    kv = np.full((2, num_blocks, block_size, 2, 4), np.nan)
    for s, length in enumerate(seq_lens):
        for j in range(length):
            kv[:, table[s, j // block_size], j % block_size] = rng.standard_normal((2, 2, 4))
        table[s, -(-length // block_size) :] = -1
    inputs = {
        "q": rng.standard_normal((sum(query_lens), 16)),
        "kv": kv,
        "block_table": table,
        "query_start_loc": np.concatenate([[0], np.cumsum(query_lens)]),
        "seq_lens": np.array(seq_lens),
    }
    inputs |= {name: rng.standard_normal(4) for name in optional}
    return inputs, {**heads, "scale": 0.5, "window": 0, "softcap": 0.0, "causal": True, **attrs}


def run(inputs: dict[str, Any], attrs: dict[str, Any]) -> np.ndarray:
    return ATTENTION.run_reference(EXACT, inputs, attrs)[0]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 4, 50])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("optional", [(), ("sinks",), ("alibi_slopes",), ("sinks", "alibi_slopes")])
def test_every_combination_of_masks_caps_sinks_and_slopes_matches_the_definition(
    causal: bool, window: int, softcap: float, optional: tuple[str, ...]
):
    inputs, attrs = sample(
        7,
        seq_lens=[11, 5, 3, 6],
        query_lens=[3, 5, 0, 1],
        optional=optional,
        causal=causal,
        window=window,
        softcap=softcap,
    )
    assert run(inputs, attrs) == pytest.approx(brute_force(inputs, attrs), abs=1e-12)


def test_cross_attention_may_have_more_queries_than_keys():
    inputs, attrs = sample(8, seq_lens=[2], query_lens=[5], causal=False)
    assert run(inputs, attrs) == pytest.approx(brute_force(inputs, attrs), abs=1e-12)


def test_one_key_gives_its_value_and_a_strong_sink_takes_it_away():
    inputs, attrs = sample(9, seq_lens=[1], query_lens=[1])
    value = inputs["kv"][1, inputs["block_table"][0, 0], 0]
    assert run(inputs, attrs)[0] == pytest.approx(np.repeat(value, 2, axis=0).reshape(-1))
    score = 0.5 * float(inputs["q"][0, :4] @ inputs["kv"][0, inputs["block_table"][0, 0], 0, 0])
    y = run({**inputs, "sinks": np.array([score, 900.0, 900.0, 900.0])}, attrs)[0]
    assert y[:4] == pytest.approx(value[0] / 2)
    assert np.abs(y[4:]).max() < 1e-300


def test_long_prompts_computed_in_runs_of_queries_give_the_same(monkeypatch: pytest.MonkeyPatch):
    inputs, attrs = sample(10, seq_lens=[12, 9], query_lens=[12, 4], optional=("sinks",), window=5)
    whole = run(inputs, attrs)
    monkeypatch.setattr(attention_module, "_MAX_SCORES", 100)
    assert run(inputs, attrs) == pytest.approx(whole, abs=1e-14)


def test_permuting_physical_blocks_changes_no_bit():
    inputs, attrs = sample(11, seq_lens=[11, 5], query_lens=[3, 5])
    new_place = np.random.default_rng(1).permutation(inputs["kv"].shape[1])
    moved = np.empty_like(inputs["kv"])
    moved[:, new_place] = inputs["kv"]
    table = np.where(inputs["block_table"] < 0, -1, new_place[inputs["block_table"]])
    again = run({**inputs, "kv": moved, "block_table": table}, attrs)
    assert again.tobytes() == run(inputs, attrs).tobytes()


def test_one_shot_equals_chunks_and_sequences_do_not_see_each_other():
    inputs, attrs = sample(12, seq_lens=[10, 7], query_lens=[10, 7])
    whole = run(inputs, attrs)
    for length in (1, 4, 10):
        chunk = {
            "q": inputs["q"][length - 1 : length],
            "kv": inputs["kv"],
            "block_table": inputs["block_table"][:1],
            "query_start_loc": np.array([0, 1]),
            "seq_lens": np.array([length]),
        }
        assert run(chunk, attrs)[0] == pytest.approx(whole[length - 1], abs=1e-14)


def test_rows_after_the_last_sequence_are_zero():
    inputs, attrs = sample(13, seq_lens=[4], query_lens=[2])
    padded = run({**inputs, "q": np.concatenate([inputs["q"], np.ones((3, 16))])}, attrs)
    assert padded[:2].tobytes() == run(inputs, attrs).tobytes()
    assert not padded[2:].any()


def test_a_cache_in_float32_is_read_as_it_is():
    inputs, attrs = sample(14, seq_lens=[6], query_lens=[6])
    narrow = inputs["kv"].astype(np.float32)
    assert (
        run({**inputs, "kv": narrow}, attrs).tobytes() == run({**inputs, "kv": narrow.astype(float)}, attrs).tobytes()
    )
