"""Plugins of API level 1, as other people built them, load and answer for ever."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
from installed import Site  # noqa: E402  tests/support is no package

QUESTION = "What is the capital of France?"
CHECKSUMS = {
    "abacus": "86e52a768314e51684fcca10c5a90f0f4050e92059acd2e91ea4ee4b0a4a2488",
    "loom": "dbe5c972eb9d65d86bb5d695c1d8091433c945fd4ca1ca4b987fd71858d1a1cb",
}
"""Folder -> checksum. A line is never changed; a new API level adds lines."""
WORK = {
    "abacus": "linear, glu, add native (",
    "loom": "backend loom · demo ",
}
"""What the first line says about their share: loom computes the whole step."""
NATIVE = {
    "abacus": ["abacus::shift@1", "add@1", "concat@1", "glu@1", "kv_write@1", "linear@1", "topk@1"],
    "loom": [
        *("add@1", "argmax@1", "attention@1", "embed@1", "gather_rows@1", "glu@1", "kv_write@1", "linear@1"),
        *("rms_norm@1", "rope@1"),
    ],
}


def checksum(folder: Path) -> str:
    """Over names and bytes of all files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        name = path.relative_to(folder).as_posix()
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Both are installed."""
    made = Site(tmp_path_factory.mktemp("frozen"))
    made.add(*(HERE / name for name in CHECKSUMS))
    return made


def test_nobody_edited_them() -> None:
    assert {name: checksum(HERE / name) for name in CHECKSUMS} == CHECKSUMS, "read tests/plugins_frozen/README.md"
    assert {p.name for p in HERE.iterdir() if p.is_dir() and p.name != "__pycache__"} == set(CHECKSUMS)


def test_they_load_and_find_their_devices(site: Site) -> None:
    events = [json.loads(line) for line in site.run("runtime", "backends", "--json").stdout.splitlines()]
    found = {e["name"]: e for e in events if e["name"] in CHECKSUMS}
    assert {name: (e["state"], e["version"], e["api_level"], e["reason"]) for name, e in found.items()} == {
        "abacus": ("ok", "1.0.0", 1, ""),
        "loom": ("ok", "1.0.0", 1, ""),
    }
    assert found["abacus"]["devices"][0]["uuid"] == "abacus-0"
    assert found["abacus"]["notices"] == ["computes in memory of its own"]


@pytest.mark.parametrize("name", CHECKSUMS)
def test_their_manifests_say_what_they_said(site: Site, name: str) -> None:
    manifest = json.loads(site.run("runtime", "backends", name, "--manifest").stdout)
    assert sorted({rule["op"] for rule in manifest["rules"]}) == NATIVE[name]


@pytest.mark.parametrize("name", CHECKSUMS)
def test_they_answer(site: Site, name: str) -> None:
    done = site.run("runtime", "run", "--backend", name, "--temp", "0", QUESTION)
    assert done.stdout == "Paris.\n", done.stderr
    assert WORK[name] in done.stderr


def test_the_region_compiler_needs_no_host(site: Site) -> None:
    forbidden = ["--fallback", "forbid"]
    plan = site.run("runtime", "plan", "--backend", "loom")
    assert "step      all 9 operations native (100.0 % of the work)" in plan.stdout
    refused = site.run("runtime", "run", "--backend", "abacus", *forbidden, QUESTION)
    assert refused.returncode == 2


PROGRAM = """
import numpy as np
from runtime.backend import Span
from runtime.dtypes import FORMATS
from runtime.executor import Executor, make_plan
from runtime.graph import GraphBuilder
from runtime.registry import choose, discover

choice = choose(discover(), "abacus")
builder = GraphBuilder("own", {"T": Span(1, 8)})
builder.output("y", builder.op("abacus::shift", x=builder.input("x", "f32", ("T", 4)), attrs={"by": 3.0}))
plan = make_plan(builder.build(), {"abacus": choice.backend.manifest()}, fallback="forbid")
device = choice.backend.open(choice.device)
print(Executor(plan, {"abacus": device}).run({"x": np.ones((2, 4), np.float32)}, {"T": 2})["y"].tolist())
print(FORMATS["abacus::u4"].decode(bytes([0x21, *range(15)]), (32,))[:4].tolist())
"""


def test_an_operation_and_a_format_of_their_own_still_register(site: Site) -> None:
    done = site.run("python", "-c", PROGRAM)
    assert done.stdout == "[[4.0, 4.0, 4.0, 4.0], [4.0, 4.0, 4.0, 4.0]]\n[1.0, 2.0, 0.0, 0.0]\n", done.stderr
