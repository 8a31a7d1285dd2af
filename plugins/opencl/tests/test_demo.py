"""The demo model on an OpenCL device: the reference's tokens, and nothing of the work on the host."""

from __future__ import annotations

import pytest

from runtime import LLM, SamplingParams
from runtime.cli import main

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
TOKEN_IDS = {
    "What is the capital of France?": (51, 1067, 17, 2),
    "What is the capital of Italy?": (53, 337, 17, 2),
    "What colour is the sky?": (37, 772, 17, 2),
    "Tell me a story about a cat.": (620, 586, 279, 403, 550, 503, 279, 477, 862, 542, 672, 17),
    "Count from 3 to 7.": (23, 15, 224, 24, 15, 224, 25, 15, 224, 26, 15, 224),
    "Repeat: red fox": (69, 506, 2),
    "What is two plus three?": (51, 1067, 15, 408, 87, 1144, 320, 375, 1066, 17, 2),
    "Who are you?": (44, 1122, 275, 1080, 948, 305, 1207, 328, 938, 17, 2),
    "What is the opposite of hot?": (38, 854, 17, 2),
    "Name an animal.": (38, 277, 86, 17, 2),
}
"""What the float64 reference answers, greedily, within 12 tokens."""


@pytest.fixture
def installed(opencl_info, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The plugin under its entry point, as after an installation."""
    from pathlib import Path

    folder = Path(__file__).resolve().parents[1]
    info = tmp_path / "runtime_opencl-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: runtime-opencl\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[runtime.backends.v1]\nopencl = runtime_opencl:plugin\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_greedy_tokens_are_those_of_the_reference(installed) -> None:
    with LLM(backend="opencl") as llm:
        for question, token_ids in TOKEN_IDS.items():
            assert llm.chat([{"role": "user", "content": question}], GREEDY).token_ids == token_ids, question
        plan = llm.loaded.plan
        assert plan.summary.host_share == 0.0
        assert {p.device for p in plan.placements.by_node} == {"opencl"}
        assert len(plan.regions) == 1
        assert llm.loaded.executor.counters()["host_compute_ns"] == 0


def test_run_says_that_all_of_the_model_is_native(installed, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--backend", "opencl", "-v", "--temperature", "0", "What is the capital of France?"]) == 0
    out, err = capsys.readouterr()
    assert "Paris." in out
    assert "operations native (100.0 % of the work)" in err
    assert "host:" not in err.splitlines()[1]
