"""The figures of a load test, judged by numpy and by the arithmetic of hand-made samples."""

from __future__ import annotations

import random
from itertools import islice
from xml.etree import ElementTree

import numpy as np
import pytest

from runtime.errors import InvalidArgument
from runtime.server.load.client import Sample
from runtime.server.load.drive import Run
from runtime.server.load.plot import plot
from runtime.server.load.summary import describe, summarize
from runtime.server.load.workload import Scale, Workload, asks


def test_percentiles_are_numpys() -> None:
    draw = random.Random(1)
    for n in (1, 2, 3, 10, 101):
        values = [draw.random() for _ in range(n)]
        figures = describe(values)
        assert figures is not None
        for p in (50, 90, 99):
            assert figures[f"p{p}"] == pytest.approx(np.percentile(values, p))
        assert figures["mean"] == pytest.approx(np.mean(values))


def test_nothing_has_no_percentiles() -> None:
    assert describe([]) is None


def test_a_record_counts_what_its_samples_say() -> None:
    good = Sample(0.0, pieces=[0.5, 0.75, 1.0], end=1.0, prompt_tokens=10, cached_tokens=4, completion_tokens=3)
    bad = Sample(0.25, end=0.5, status=503, error="503: no")
    record = summarize(Run(2, None, (good, bad), 2.0))
    assert record["failed"] == 1
    assert record["errors"] == {"503: no": 1}
    assert record["output_tokens_per_s"] == 1.5
    assert record["ttft_s"]["p50"] == 0.5
    assert record["itl_s"] == {"mean": 0.25, "min": 0.25, "p50": 0.25, "p90": 0.25, "p99": 0.25, "max": 0.25}
    assert record["cached_tokens"] == 4
    assert [s["status"] for s in record["samples"]] == [0, 503]


def test_the_same_seed_asks_the_same_and_prompts_share_only_their_beginning() -> None:
    workload = Workload((100, 100), (5, 9), shared_prefix_tokens=40)
    scale = Scale(fixed=2.0, per_word=1.0)
    first = list(islice(asks(workload, scale, 0), 5))
    assert first == list(islice(asks(workload, scale, 0), 5))
    parts = [a.prompt.split() for a in first]
    assert {tuple(p[:38]) for p in parts} == {tuple(parts[0][:38])}
    assert len({tuple(p[38:]) for p in parts}) == 5
    assert {len(p) for p in parts} == {98}
    assert {a.output_tokens for a in first} <= set(range(5, 10))


def test_a_prefix_as_long_as_the_prompt_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="less than the shortest prompt, 64 tokens"):
        Workload((64, 128), shared_prefix_tokens=64)


def test_the_picture_is_well_formed_and_has_a_point_per_figure() -> None:
    good = Sample(0.0, pieces=[0.5, 0.75], end=1.0, completion_tokens=2)
    failed = Sample(0.0, end=1.0, error="x")
    records = [summarize(Run(n, None, (good, failed), 1.0)) for n in (1, 4)] + [summarize(Run(8, None, (failed,), 1.0))]
    tree = ElementTree.fromstring(plot(records, "<model> & co"))
    circles = tree.findall(".//{http://www.w3.org/2000/svg}circle")
    # Throughput of three loads; two that had answers, by three percentiles, in two panels.
    assert len(circles) == 3 + 2 * 3 * 2
