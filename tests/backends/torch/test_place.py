"""`--place`: one engine over two devices, as a person starts it, with `runtime run` and `runtime serve`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime import LLM, SamplingParams

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from server_process import ServerProcess

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[3]
QUESTION = "What is the capital of France?"
TEXT = (
    "Once upon a time there was a runtime that ran on whatever hardware was present. It was small and it was quick. "
    * 2
)
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


@pytest.fixture
def environment(workers_find_it: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the plugin and the packages of this tree."""
    packages = ["core", "backends/cpu", "backends/torch_common"]
    plugin = Path(__file__).resolve().parent / "plugin"
    path = [tmp_path, plugin, *(ROOT / package for package in packages), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(p) for p in path if str(p)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def runtime(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def reference(prompts: Sequence[str], max_tokens: int) -> list[tuple[int, ...]]:
    """What the float64 references answer, one prompt at a time."""
    with LLM(backend="cpu", place="*=host", kv_format="f32", max_num_seqs=1) as llm:
        return [llm.generate(prompt, GREEDY.with_(max_tokens=max_tokens)).token_ids for prompt in prompts]  # type: ignore[union-attr]


# --- runtime run


@pytest.mark.parametrize(
    ("backend", "place", "devices"),
    [
        ("torch-cpu", "layers[0:2]=torch-cpu,layers[2:]=cpu", ["torch-cpu", "cpu", "torch-cpu"]),
        ("cpu", "layers[0:2]=cpu,layers[2:]=torch-cpu", ["cpu", "torch-cpu", "cpu"]),
        ("cpu", "layers[0:1]=torch-cpu:0,layers[1:4]=cpu:0,layers[4:]=torch-cpu,*=cpu", None),
    ],
    ids=["torch first", "cpu first", "three parts"],
)
def test_run_over_two_devices_gives_the_greedy_tokens_of_the_reference(
    environment: None, backend: str, place: str, devices: list[str] | None
) -> None:
    (expected,) = reference([TEXT[:80]], 8)
    done = runtime(
        *("run", TEXT[:80], "--raw", "--temp", "0", "--ignore-eos", "-n", "8"),
        *("--backend", backend, "--place", place, "--fallback", "forbid", "--json"),
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert tuple(t for event in events if event["event"] == "token" for t in event["token_ids"]) == expected
    plan = events[0]["plan"]
    assert [r["device"] for r in plan["regions"]] == (devices or ["cpu", "torch-cpu", "cpu", "torch-cpu", "cpu"])
    assert {p["how"] for p in plan["placements"]} == {"native"}


def test_the_status_line_and_the_plan_name_both_devices_with_their_shares_and_memory(environment: None) -> None:
    place = ("--backend", "torch-cpu", "--place", "layers[0:2]=torch-cpu,layers[2:]=cpu")
    done = runtime("run", QUESTION, "--temp", "0", *place)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Paris.\n"
    assert re.search(
        r"^backend torch-cpu · .* native on cpu \(55\.7 % of the work\); .* native on torch-cpu \(44\.3 %\) · demo q8_0",
        done.stderr,
    )
    (plan,) = [json.loads(line) for line in runtime("plan", *place, "--json").stdout.splitlines()]
    assert {name: part["kv_bytes"] for name, part in plan["memory"].items()} == {
        "torch-cpu": 2 * 512 * 1024,  # two of five layers; 2 heads of 64 as f16, keys and values, for 1024 tokens
        "cpu": 3 * 512 * 1024,
    }


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "layers[2:]=torch-cp",
            "placement 'layers[2:]=torch-cp': there is no backend 'torch-cp'; did you mean 'torch-cpu'?",
        ),
        ("layers[2:]=cpu:7", "placement 'layers[2:]=cpu:7': backend 'cpu' has no device 7\n       it has 0"),
        (
            "layers[2:]=refusing",
            "placement 'layers[2:]=refusing': backend 'refusing' cannot run here: the chip is asleep\n       wake it up, or use",
        ),
        (
            "layers[2:]=broken",
            "placement 'layers[2:]=broken': backend 'broken' (refusing 0) was rejected at stage import: No module named 'module_that_is_missing'",
        ),
        ("layers[0:3]=torch-cpu,layers[2:]=cpu", "both take layers.2\n       slices must not overlap"),
        ("layers[0:3]=torch-cpu,lyers[3:]=cpu", "'lyers[3:]=cpu' selects nothing: the nodes are"),
        ("layers[0:2]", "'layers[0:2]' is not of the form PATTERN=DEVICE\n       write e.g. \"layers[0:8]=cuda"),
    ],
)
def test_bad_places_are_refused_with_value_rule_and_remedy_by_run_and_plan(
    environment: None, tmp_path: Path, place: str, message: str
) -> None:
    (tmp_path / "refusing.py").write_text(REFUSING)
    info = tmp_path / "refusing-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: refusing\nVersion: 0\n")
    points = "[runtime.backends.v1]\nrefusing = refusing:plugin\nbroken = module_that_is_missing:plugin\n"
    (info / "entry_points.txt").write_text(points)
    verbs = {"run": (QUESTION,), "plan": ()}
    if place.endswith(("refusing", "cpu:7")):
        verbs.pop("plan")  # it asks manifests alone: no device is looked for
    for verb, arguments in verbs.items():
        done = runtime(verb, *arguments, "--backend", "torch-cpu", "--place", place)
        assert done.returncode == 2
        assert done.stdout == ""
        assert message in done.stderr


REFUSING = """
from runtime.backend import BackendInfo, Manifest, PluginRejected, hookimpl

class Plugin:
    @hookimpl
    def runtime_backend_info(self):
        return BackendInfo("refusing", "test")

    @hookimpl
    def runtime_manifest(self):
        return Manifest("refusing")

    @hookimpl
    def runtime_probe(self):
        raise PluginRejected("the chip is asleep", remedy="wake it up")

    @hookimpl
    def runtime_open(self, device, config):
        raise PluginRejected("the chip is asleep", remedy="wake it up")

plugin = Plugin()
"""


# --- runtime serve


def stream(client: httpx.Client, prompt: str, max_tokens: int) -> tuple[list[list[int]], Mapping[str, Any]]:
    """The tokens of an answer, event by event, and its usage."""
    body = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    *events, usage = [json.loads(line) for line in lines]
    return [event["choices"][0]["token_ids"] for event in events], usage["usage"]


def joined(events: list[list[int]]) -> tuple[int, ...]:
    return tuple(token for event in events for token in event)


@pytest.fixture(params=["torch first", "cpu first"])
def served(environment: None, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """Three blocks of 64 tokens: two requests of more than 64 tokens each do not fit beside each other."""
    first, second = ("torch-cpu", "cpu") if request.param == "torch first" else ("cpu", "torch-cpu")
    place = f"layers[0:2]={first},layers[2:]={second}"
    limits = ("--ctx", "192", "--num-kv-blocks", "3", "--max-num-seqs", "2")
    with (
        ServerProcess("--backend", first, "--place", place, "--fallback", "forbid", *limits) as server,
        httpx.Client(base_url=server.url, timeout=200) as client,
    ):
        yield client


def test_streams_at_a_time_preempted_ones_and_cached_prefixes_give_the_tokens_of_the_reference(
    served: httpx.Client,
) -> None:
    with LLM(max_num_seqs=1) as llm:
        tokenizer = llm.loaded.tokenizer
        cut = [tokenizer.decode(tokenizer.encode(start + TEXT)[:58]) for start in ("A: ", "B: ")]
    prompts = [*cut, TEXT]
    expected = [answer[:n] for answer, n in zip(reference(prompts, 12), (12, 12, 3))]
    answers: dict[int, tuple[list[list[int]], Mapping[str, Any]]] = {}
    threads = [
        threading.Thread(target=lambda i=i: answers.update({i: stream(served, prompts[i], 12)}))  # type: ignore[misc]
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [joined(answers[i][0]) for i in range(2)] == expected[:2]
    assert all(len(answers[i][0]) == 12 for i in range(2))  # one event a token
    metrics = served.get("/metrics").text
    assert int(re.search(r"^runtime_num_preemptions_total\S* (\d+)", metrics, flags=re.M)[1]) > 0  # type: ignore[index]
    (first, before), (again, after) = stream(served, TEXT, 3), stream(served, TEXT, 3)
    assert joined(first) == joined(again) == expected[2]
    assert before["prompt_tokens_details"]["cached_tokens"] == 0
    assert after["prompt_tokens_details"]["cached_tokens"] == 64
