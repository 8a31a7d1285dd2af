"""Sampling without sorts: before the reference, transformers' warpers, and itself split and batched otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.backend import DeviceConfig, TensorSpec
from runtime.dtypes import FORMATS
from runtime.graph import GraphBuilder, make_region
from runtime.ops import CATALOGUE, EXACT
from runtime_torch.settings import INTERPRETED, Tiles

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(300)]

BORDER = 2.0**-16
"""See `runtime_conformance.judging.discrete`."""
LISTS = replace(INTERPRETED, candidates=64, listed=1)
"""Rows of more than 64 columns have lists of candidates, or are too flat for one."""
SMALL = replace(INTERPRETED, sampled=256, drawn=128, candidates=64, listed=1, compared=4, programs=16)
"""Several tiles in a chunk, several chunks in a row."""
OFF: Mapping[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "uniform": 0.5}


def run(op: str, tiles: Tiles, **inputs: np.ndarray) -> np.ndarray:
    """The output of one node on torch's cpu; scratch memory begins as garbage."""
    import runtime_torch_cpu
    import torch

    settings = replace(runtime_torch_cpu.SETTINGS, tiles=tiles)
    device = runtime_torch_cpu.TorchCpuBackend(settings).runtime_open(runtime_torch_cpu.INFO, DeviceConfig())
    device._shared.workspace.take((1 << 22,), torch.uint8).fill_(0x7B)
    made = run_on(device, op, inputs)
    device.close()
    return made


def run_on(device: Any, op: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    builder = GraphBuilder("one", {})
    formats = {"float32": "f32", "int32": "i32"}
    values = {name: builder.input(name, formats[a.dtype.name], a.shape) for name, a in inputs.items()}
    y = builder.op(op, **values)
    region = make_region("one", list(builder.build().nodes), {}, [y])
    bound = {name: device.allocate(value.spec) for name, value in values.items()} | {y.name: device.allocate(y.spec)}
    for name, value in values.items():
        device.upload(bound[name], memoryview(np.ascontiguousarray(inputs[name])).cast("B"), value.spec).wait()
    executable = device.compile(region, {}, {})
    executable.submit(bound, {}).wait()
    made = np.empty(y.spec.shape, np.int32 if op == "sample" else np.float32)
    device.download(bound[y.name], memoryview(made).cast("B"), y.spec).wait()
    executable.close()
    return made


def rows_of(logits: Any, **given: Any) -> dict[str, np.ndarray]:
    """Inputs of `sample`: numbers are for all rows."""
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    made = {"logits": logits}
    for name, off in OFF.items():
        dtype = np.int32 if name == "top_k" else np.float32
        made[name] = np.broadcast_to(np.asarray(given.get(name, off), dtype), logits.shape[:1]).copy()
    return made


def random_rows(seed: int, num_rows: int, vocab: int) -> dict[str, np.ndarray]:
    """All combinations of filters; peaked, flat, stepped, tied and banned logits; temperatures of all kinds."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, rng.choice([0.5, 2, 5], (num_rows, 1)), (num_rows, vocab))
    kind = rng.integers(0, 5, num_rows)[:, None]
    logits = np.where(kind == 1, np.round(logits), logits)
    logits = np.where(kind == 2, np.round(logits * 32) / 32, logits)
    logits = np.where((kind == 3) & (rng.random(logits.shape) < 0.4), -np.inf, logits)
    logits[:, 0] = np.where(np.isfinite(logits).any(1), logits[:, 0], 0)
    return rows_of(
        logits,
        temperature=rng.choice([0, 1e-5, 0.05, 0.7, 1, 1.3, 5, 100], num_rows),
        top_k=rng.choice([0, 0, 1, 2, 5, 40, vocab * 3 // 5, vocab, vocab + 5], num_rows),
        top_p=rng.choice([1, 1, 0.999, 0.95, 0.9, 0.5, 1e-6], num_rows),
        min_p=rng.choice([0, 0, 1e-3, 0.05, 0.5, 1], num_rows),
        typical_p=rng.choice([1, 1, 0.95, 0.5, 0.2], num_rows),
        uniform=rng.choice([0, 1 - 2.0**-24, *rng.random(20)], num_rows),
    )


def reference(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    with np.errstate(all="ignore"):
        (drawn,) = CATALOGUE["sample@1"].run_reference(EXACT, dict(rows), {})
    return drawn


def wrong_rows(rows: dict[str, np.ndarray], drawn: np.ndarray) -> np.ndarray:
    """Rows whose token neither the reference draws nor would with numbers that are `BORDER` away."""
    wrong = drawn != reference(rows)
    for name in ("uniform", "top_p", "min_p", "typical_p"):
        for sign in (1, -1):
            if wrong.any():
                by = rows[name] * (1 + sign * BORDER) if name != "uniform" else rows[name] + sign * BORDER
                wrong &= drawn != reference({**rows, name: np.clip(by, 0, None).astype(np.float32)})
    return np.flatnonzero(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vocab", "num_rows", "tiles"),
    [
        *((vocab, 256, INTERPRETED) for vocab in (2, 3, 97)),
        (320, 512, INTERPRETED),
        (320, 512, LISTS),
        (1000, 256, LISTS),
        (1000, 24, SMALL),
        (5000, 24, LISTS),
        (151_936, 8, INTERPRETED),
    ],
)
def test_random_rows_draw_the_token_of_the_reference(vocab: int, num_rows: int, tiles: Tiles):
    rows = random_rows(vocab, num_rows, vocab)
    drawn = run("sample", tiles, **rows)
    wrong = wrong_rows(rows, drawn)
    assert [{n: a[r] for n, a in rows.items() if n != "logits"} for r in wrong] == []
    assert (drawn == reference(rows)).mean() > 0.99


@pytest.mark.parametrize(("tiles", "num_draws"), [(LISTS, 64), (SMALL, 10)])
def test_filters_leave_what_the_warpers_of_transformers_leave(tiles: Tiles, num_draws: int):
    """The k-th of even draws lies in the k-th part of the cumulative probabilities that transformers gives."""
    import torch
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
    from transformers.generation.logits_process import TypicalLogitsWarper

    logits = np.random.default_rng(3).normal(0, 3, 300).astype(np.float32)
    for given in (
        {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
        {"temperature": 1.3, "top_p": 0.8, "min_p": 0.05},
        {"temperature": 2.0, "min_p": 0.02, "typical_p": 0.7},
        {"temperature": 1.0, "typical_p": 0.3},
        {"temperature": 0.5},
    ):
        scores = torch.from_numpy(logits).double()[None]
        warpers = {"temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper}
        warpers |= {"min_p": MinPLogitsWarper, "typical_p": TypicalLogitsWarper}
        for name, warper in warpers.items():
            if name in given:
                scores = warper(given[name])(None, scores)
        cumulative = torch.cumsum(torch.softmax(scores[0], 0), 0).numpy()
        uniform = (np.arange(num_draws) + 0.3) / num_draws
        clear = np.abs(cumulative[:, None] - uniform).min(0) > BORDER
        rows = rows_of(np.tile(logits, (num_draws, 1)), uniform=uniform, **given)
        expected = np.searchsorted(cumulative, uniform, side="right")
        assert clear.sum() > num_draws * 0.8
        np.testing.assert_array_equal(run("sample", tiles, **rows)[clear], expected[clear])


def test_even_draws_are_as_many_as_probabilities_demand():
    logits = np.log([0.5, 0.25, 0.125, 0.0625, 0.0625, 1e-20])
    rows = rows_of(np.tile(logits, (1024, 1)), uniform=np.arange(1024) / 1024)
    assert np.bincount(run("sample", INTERPRETED, **rows), minlength=6).tolist() == [512, 256, 128, 64, 64, 0]


def test_a_row_has_the_same_token_alone_and_in_a_batch_of_64_however_it_is_split():
    rows = random_rows(11, 64, 700)
    together = run("sample", LISTS, **rows)
    np.testing.assert_array_equal(run("sample", INTERPRETED, **rows), together)
    for r in range(0, 64, 7):
        alone = {name: a[r : r + 1] for name, a in rows.items()}
        assert run("sample", SMALL, **alone)[0] == together[r]


def test_ties_are_kept_or_broken_as_declared():
    """Four tokens of 1/6, 1/6, 1/3 and 1/3: top_k keeps all that tie, top_p and greedy choices take lower ids."""
    logits = np.log([1, 1, 2, 2])
    cases = {
        (("top_k", 1), ("uniform", 0.99)): 3,
        (("top_k", 3), ("uniform", 0.01)): 0,
        (("top_p", 0.3), ("uniform", 0.99)): 2,
        (("top_p", 0.75), ("uniform", 0.01)): 0,
        (("top_p", 0.75), ("uniform", 0.3)): 2,
        (("typical_p", 0.1), ("uniform", 0.99)): 3,
        (("temperature", 0.0), ("uniform", 0.99)): 2,
        (("min_p", 1.0), ("uniform", 0.0)): 2,
    }
    rows = [rows_of(logits, **dict(given)) for given in cases]
    stacked = {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}
    for tiles in (INTERPRETED, replace(SMALL, candidates=2)):
        assert run("sample", tiles, **stacked).tolist() == list(cases.values())


def test_rows_with_nan_infinity_or_nothing_give_minus_one_and_others_their_token():
    logits = np.zeros((6, 300), np.float32)
    logits[:, 7] = 1
    logits[0, 250] = np.nan
    logits[1, 299] = np.inf
    logits[2] = -np.inf
    logits[3, :7] = -np.inf
    logits[4, 8] = -0.0
    for temperature in (0.0, 1e-30):
        for tiles in (LISTS, SMALL):
            rows = rows_of(logits, temperature=temperature, top_k=5, top_p=0.9)
            assert run("sample", tiles, **rows).tolist() == [-1, -1, -1, 7, 7, 7]


@pytest.mark.parametrize(
    ("num_rows", "vocab", "launches", "most_bytes"),
    [(1, 128_256, 4, 1 << 22), (64, 128_256, 4, 1 << 24), (64, 4096, 2, 1 << 16)],
)
def test_few_launches_and_little_memory_draw_tokens(
    num_rows: int, vocab: int, launches: int, most_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    import runtime_torch_cpu

    from runtime_torch import lower_sampling

    monkeypatch.setattr(lower_sampling, "launch", lambda *_, **__: lambda: None)
    device = runtime_torch_cpu.TorchCpuBackend(replace(runtime_torch_cpu.SETTINGS, tiles=Tiles())).runtime_open(
        runtime_torch_cpu.INFO, DeviceConfig()
    )
    run_on(device, "sample", rows_of(np.zeros((num_rows, vocab))))
    assert device.counters()["kernels_run"] == launches
    assert sum(memory.numel() for memory in device._shared.workspace._memory) <= most_bytes
    device.close()


@pytest.mark.parametrize("tiles", [INTERPRETED, SMALL])
def test_penalties_and_biases_add_up_and_change_single_logits(tiles: Tiles):
    rng = np.random.default_rng(5)
    num_rows, vocab, history, biases = 3, 50, 9, 11
    token_ids = np.stack([rng.permutation(vocab)[:history] for _ in range(num_rows)]).astype(np.int32)
    token_ids[1, 4:] = -1
    bias_ids = rng.integers(-1, 12, (num_rows, biases)).astype(np.int32)
    bias_ids[0, :3] = token_ids[0, 0]
    bias_values = rng.normal(0, 3, (num_rows, biases)).astype(np.float32)
    bias_values[2, 5] = -np.inf
    inputs = {
        "logits": rng.normal(0, 4, (num_rows, vocab)).astype(np.float32),
        "token_ids": token_ids,
        "output_counts": rng.integers(0, 4, (num_rows, history)).astype(np.int32),
        "repetition": np.array([1.3, 1.0, 0.8], np.float32),
        "presence": np.array([0.5, 0.0, -0.25], np.float32),
        "frequency": np.array([0.1, 0.3, 0.0], np.float32),
        "bias_ids": bias_ids,
        "bias_values": bias_values,
    }
    (expected,) = CATALOGUE["penalize@1"].run_reference(EXACT, inputs, {})
    np.testing.assert_allclose(run("penalize", tiles, **inputs), expected, rtol=1e-6, atol=1e-6)
    del inputs["bias_ids"], inputs["bias_values"]
    (expected,) = CATALOGUE["penalize@1"].run_reference(EXACT, inputs, {})
    np.testing.assert_allclose(run("penalize", tiles, **inputs), expected, rtol=1e-6, atol=1e-6)


def test_one_captured_choice_serves_all_batches_of_its_bucket():
    """Rows, histories and biases grow and shrink; the rows beyond hold what an earlier batch left in them."""
    import runtime_torch_cpu

    from runtime.engine.sampling_graph import SamplingVariant, build_sampling_graph

    vocab, rng = 90, np.random.default_rng(9)
    graph = build_sampling_graph(vocab, SamplingVariant(penalties=True, random=True), max_num_seqs=8, max_model_len=256)
    (token_ids,) = graph.outputs.values()
    region = make_region("sampling", list(graph.nodes), graph.dims, [token_ids])
    device = runtime_torch_cpu.captured.runtime_open(runtime_torch_cpu.INFO, DeviceConfig())
    executable = device.compile(region, {}, {})
    largest = {name: span.hi for name, span in graph.dims.items()}
    values = graph.inputs | {token_ids.name: token_ids}
    bound = {name: device.allocate(TensorSpec(v.spec.format, v.spec.resolve(largest))) for name, v in values.items()}
    for num_rows, history, biases in ((4, 60, 3), (3, 40, 16), (4, 64, 1), (3, 5, 9), (7, 60, 9)):
        ids = np.stack([rng.permutation(vocab)[:history] for _ in range(num_rows)]).astype(np.int32)
        ids[:, history // 2 :] = -1
        penalties = {
            "logits": rng.normal(0, 3, (num_rows, vocab)).astype(np.float32),
            "token_ids": ids,
            "output_counts": rng.integers(0, 4, ids.shape).astype(np.int32),
            **{n: rng.uniform(0.2, 1.5, num_rows).astype(np.float32) for n in ("repetition", "presence", "frequency")},
            "bias_ids": rng.integers(-1, vocab, (num_rows, biases)).astype(np.int32),
            "bias_values": rng.normal(0, 5, (num_rows, biases)).astype(np.float32),
        }
        (penalised,) = CATALOGUE["penalize@1"].run_reference(EXACT, penalties, {})
        rows = rows_of(penalised, temperature=0.8, top_k=20, top_p=0.9, uniform=rng.random(num_rows))
        for name, array in ({"history_ids": penalties.pop("token_ids")} | rows | penalties).items():
            spec = TensorSpec(graph.inputs[name].spec.format, array.shape)
            device.upload(bound[name], memoryview(np.ascontiguousarray(array)).cast("B"), spec).wait()
        executable.submit(bound, {"R": num_rows, "H": history, "X": biases}).wait()
        drawn = np.empty(num_rows, np.int32)
        device.download(
            bound[token_ids.name], memoryview(drawn).cast("B"), TensorSpec(FORMATS["i32"], drawn.shape)
        ).wait()
        assert drawn.tolist() == reference(rows).tolist()
    assert executable.num_replays == 3
    executable.close()
    device.close()
