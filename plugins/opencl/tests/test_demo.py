"""The demo model on an OpenCL device: the reference's tokens, and nothing of the work on the host."""

from __future__ import annotations

import pytest

from runtime import LLM, SamplingParams
from runtime.cli import main

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Italy?",
    "What colour is the sky?",
    "Tell me a story about a cat.",
    "Count from 3 to 7.",
    "Repeat: red fox",
    "What is two plus three?",
    "Who are you?",
    "What is the opposite of hot?",
    "Name an animal.",
)


def reference_answers() -> list[tuple[int, ...]]:
    """What the float64 references answer: every operation of the model is placed on the host."""
    with LLM(backend="opencl", place="*=host", kv_format="f32") as llm:
        assert llm.loaded.plan.summary.host_share == pytest.approx(1.0)
        return [llm.chat([{"role": "user", "content": q}], GREEDY).token_ids for q in QUESTIONS]


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
    expected = reference_answers()
    with LLM(backend="opencl") as llm:
        answers = [llm.chat([{"role": "user", "content": q}], GREEDY) for q in QUESTIONS]
        assert [a.token_ids for a in answers] == expected
        assert answers[0].text == "Paris."
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
