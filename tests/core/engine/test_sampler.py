"""Tokens from logits that stay on their device, beside the same from logits of the host."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backend import ReferenceDevice, reference_manifest
from runtime.dtypes import FORMATS, TensorSpec
from runtime.engine.request import Request
from runtime.engine.sampler import Sampler
from runtime.engine.sampling_params import SamplingParams
from runtime.executor import Executor, KeptOutput, make_plan

VOCAB_SIZE = 16


@pytest.fixture
def device() -> ReferenceDevice:
    return ReferenceDevice()


@pytest.fixture
def sampler(device: ReferenceDevice) -> Sampler:
    return Sampler(
        VOCAB_SIZE,
        max_num_seqs=4,
        max_model_len=8,
        eos_token_ids=frozenset({0}),
        token_text=str,
        make_executor=lambda graph: Executor(make_plan(graph, {"cpu": reference_manifest()}), {"cpu": device}),
    )


def kept(device: ReferenceDevice, logits: np.ndarray) -> KeptOutput:
    spec = TensorSpec(FORMATS["f32"], logits.shape)
    buffer = device.allocate(spec)
    device.upload(buffer, memoryview(logits.copy()).cast("B"), spec).wait()
    return KeptOutput(device, buffer, spec)


def requests(count: int, params: SamplingParams) -> list[Request]:
    return [Request(str(i), [1, 2], params, 4) for i in range(count)]


def test_a_greedy_step_fetches_one_token_and_one_number_per_row(sampler: Sampler, device: ReferenceDevice):
    logits = np.random.default_rng(5).standard_normal((3, VOCAB_SIZE)).astype(np.float32)
    logits[1, 7], logits[2, 3] = np.nan, np.inf
    wanted = requests(3, SamplingParams(temperature=0.0))
    given = kept(device, logits)
    before = device.counters()["bytes_downloaded"]
    got = sampler.sample(given, wanted)
    assert device.counters()["bytes_downloaded"] - before == 3 * (4 + 4)
    assert got[0].token_id == int(logits[0].argmax())
    assert [s.error is None for s in got] == [True, False, False]
    assert "the model's logits hold NaN or infinity after 2 tokens" in str(got[1].error)
    assert [s.token_id for s in sampler.sample(logits, wanted)] == [s.token_id for s in got]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.8, top_k=5, seed=3),
        SamplingParams(temperature=0.0, logprobs=2, min_tokens=1),
        SamplingParams(temperature=1.3, top_p=0.7, frequency_penalty=0.5, seed=11),
    ],
)
def test_logits_on_a_device_give_the_tokens_of_logits_on_the_host(
    sampler: Sampler, device: ReferenceDevice, params: SamplingParams
):
    logits = np.random.default_rng(6).standard_normal((4, VOCAB_SIZE)).astype(np.float32)
    wanted = requests(4, params)
    assert sampler.sample(kept(device, logits), wanted) == sampler.sample(logits, wanted)
