"""`runtime bench serve` as a process, against `runtime serve` as another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from server_process import ROOT, ServerProcess


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ServerProcess("--max-num-seqs", "4") as server:
        yield f"{server.url}/v1"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = [str(ROOT / "core"), str(ROOT / "backends/cpu"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "runtime", "bench", "serve", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in path if p)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_closed_loop_is_measured_and_drawn(url: str, tmp_path: Path) -> None:
    record_file, plot_file = tmp_path / "load.json", tmp_path / "load.svg"
    sizes = ("--requests", "4", "--input", "48", "--output", "6", "--shared-prefix", "32")
    done = bench("--url", url, "--clients", "1,4", *sizes, "--json", str(record_file), "--plot", str(plot_file))
    assert done.returncode == 0, done.stderr
    document = json.loads(record_file.read_text())
    assert document["schema"] == "runtime-bench-serve/1"
    assert [(r["clients"], r["requests"], r["failed"], r["output_tokens"]) for r in document["records"]] == [
        (1, 4, 0, 24),
        (4, 4, 0, 24),
    ]
    for record in document["records"]:
        assert 0.8 * 4 * 48 <= record["prompt_tokens"] <= 1.2 * 4 * 48
        assert 0 < record["ttft_s"]["p50"] <= record["e2e_s"]["p50"] <= record["seconds"]
        assert len(record["samples"]) == 4
    assert "4 clients" in done.stdout
    assert ElementTree.parse(plot_file).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_an_open_loop_sends_whether_or_not_others_are_answered(url: str) -> None:
    done = bench("--url", url, "--rate", "50", "--requests", "5", "--input", "16:32", "--output", "3", "--json", "-")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["records"]
    assert (record["rate"], record["clients"], record["requests"], record["failed"]) == (50.0, None, 5, 0)
    assert record["output_tokens"] == 15


def test_what_a_server_refuses_is_counted_and_told(url: str) -> None:
    done = bench("--url", url, "--clients", "1", "--requests", "2", "--input", "600", "--output", "2")
    assert done.returncode == 1
    assert "2 requests failed" in done.stderr
    assert "400" in done.stderr


def test_an_address_without_a_server_is_an_error_with_a_remedy() -> None:
    done = bench("--url", "http://127.0.0.1:9/v1")
    assert done.returncode == 2
    assert "http://127.0.0.1:9/v1/models does not answer" in done.stderr
    assert "--api-key" in done.stderr
