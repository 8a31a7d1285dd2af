"""A processor that another package brings, in a mixed batch, in the engine's own process, and behind HTTP."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_async_llm import FakeAsyncLLM
from installed import Site

from runtime import LLM, SamplingParams
from runtime.engine.async_llm import AsyncLLM
from runtime.engine.config import EngineConfig
from runtime.errors import InvalidArgument

DOCS = Path(__file__).resolve().parents[2] / "docs/logits-processors.md"
FREE = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PUSHED = dict.fromkeys((300,), 100.0)
"""A bias under which every token is the same, so that a processor must do something about it."""

POINTS = {
    "no_echo": "no_echo:NoEcho",
    "broken": "processor_that_is_missing:Thing",
    "number": "no_echo:__name__",
}


def write_package(folder: Path) -> None:
    """The example of the documentation as an installed package, beside two entry points that are wrong."""
    source = re.search(r"```python\n(.*?)```", DOCS.read_text("utf-8"), flags=re.S)
    assert source is not None
    assert len([line for line in source[1].splitlines() if line]) <= 10
    (folder / "no_echo.py").write_text(source[1])
    info = folder / "no_echo-1.4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: no-echo\nVersion: 1.4\n")
    points = "".join(f"{name} = {value}\n" for name, value in POINTS.items())
    (info / "entry_points.txt").write_text(f"[runtime.logits_processors]\n{points}")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    write_package(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    sys.modules.pop("no_echo", None)


def test_the_example_works_in_a_mixed_batch(installed: None) -> None:
    text = "Once upon a time"
    same = FREE.with_(logit_bias=PUSHED)
    with LLM(max_num_seqs=4) as llm:
        alone = [llm.generate(text, p) for p in (FREE, same)]
        mixed = llm.generate(
            [text] * 4,
            [
                FREE,
                same,
                same.with_(logits_processors=("no_echo",)),
                same.with_(logits_processors=("no_echo",), logits_processor_args={"no_echo": {"penalty": 0.0}}),
            ],
        )
    assert [c.token_ids for c in mixed[:2]] == [c.token_ids for c in alone]  # type: ignore[union-attr]
    assert mixed[1].token_ids == (300,) * 12
    quiet = mixed[2].token_ids
    assert 300 in quiet
    assert all(a != b for a, b in itertools.pairwise(quiet))
    assert mixed[3].token_ids == (300,) * 12


def test_what_cannot_be_had_is_refused_with_the_reason(installed: None) -> None:
    def ask(name: str, **arguments: Any) -> str:
        params = FREE.with_(logits_processors=(name,), logits_processor_args={name: arguments})
        with pytest.raises(InvalidArgument) as error:
            llm.generate("x", params)
        return str(error.value)

    with LLM() as llm:
        assert ask("no_ecko") == "there is no logits processor 'no_ecko'; did you mean 'no_echo'?; installed: no_echo"
        assert ask("broken").startswith(
            "logits processor 'broken' (no-echo 1.4) was rejected at stage import: No module named 'processor_that_is_"
        )
        assert "no_echo:__name__ is 'no_echo'; it must be a class or a function" in ask("number")
        assert "unexpected keyword argument 'loudness'" in ask("no_echo", loudness=3)
        assert "cannot be made with {'penalty': 'much'}: ValueError" in ask("no_echo", penalty="much")


@pytest.mark.parametrize("process", [False, True])
def test_a_served_engine_runs_it_and_takes_functions_only_in_this_process(installed: None, process: bool) -> None:
    async def ask() -> list[int]:
        llm = await AsyncLLM.start(EngineConfig(), process=process)
        try:
            with pytest.raises(InvalidArgument, match="installed: no_echo"):
                llm.generate([5], FREE.with_(logits_processors=("nobody",)))
            bare = FREE.with_(logits_processors=lambda prompt, output, logits: None)
            if process:
                with pytest.raises(InvalidArgument, match="runs in a process of its own"):
                    llm.generate([5], bare)
            else:
                assert len([t async for o in llm.generate([5], bare) for t in o.token_ids]) == 12
            params = FREE.with_(logit_bias=PUSHED, logits_processors=("no_echo",))
            return [t async for output in llm.generate([5], params) for t in output.token_ids]
        finally:
            await llm.close()

    token_ids = asyncio.run(ask())
    assert len(token_ids) == 12
    assert all(a != b for a, b in itertools.pairwise(token_ids))


def test_doctor_shows_those_that_work_and_why_others_do_not(tmp_path: Path) -> None:
    site = Site(tmp_path)
    write_package(site.site)
    done = site.run("runtime", "doctor", "--json")
    assert done.returncode == 0
    found = {e["name"]: e for e in map(json.loads, done.stdout.splitlines()) if e["event"] == "logits_processor"}
    assert {name: (e["state"], e["stage"]) for name, e in found.items()} == {
        "no_echo": ("ok", ""),
        "broken": ("rejected", "import"),
        "number": ("rejected", "validate"),
    }
    assert found["broken"]["reason"] == "No module named 'processor_that_is_missing'"
    assert found["broken"]["remedy"]
    told = site.run("runtime", "doctor").stdout
    assert "logits processors" in told
    assert re.search(r"no_echo +ok +no-echo 1\.4", told)


def test_requests_name_processors_and_their_arguments(serve: Callable[..., Any]) -> None:
    server = serve(FakeAsyncLLM("ok"))
    ask = {"prompt": "a", "logits_processors": ["x"]}
    with server.client() as client:
        for fields in ({"logits_processor_args": {"x": {"a": 1}}}, {"vllm_xargs": {"a": 1}}):
            assert client.post("/v1/completions", json={**ask, **fields}).status_code == 200
            params = server.llm.seen[-1].params
            assert (params.logits_processors, params.logits_processor_args) == (("x",), {"x": {"a": 1}})
        for wrong in ({"prompt": "a", "vllm_xargs": {"a": 1}}, {**ask, "logits_processor_args": {"y": {}}}):
            assert client.post("/v1/completions", json=wrong).status_code == 400
