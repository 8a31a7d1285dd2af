"""`runtime run` in this process and in pipes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("plugins")
GREEDY = ("--temp", "0", "--ignore-eos", "-n", "6")


def test_the_answer_is_on_stdout_and_the_status_on_stderr(process: Callable, tiny: Path) -> None:
    result = process("run", "-m", tiny, *GREEDY, "hi")
    assert result.code == 0
    assert result.out.endswith("\n")
    (line,) = result.err.splitlines()
    assert line.startswith("backend tiny (scalar) · 1 thread (as always) · tiny.gguf f32, context 128")
    assert "absent refused: no chip on the bus" in line
    assert "broken refused: import: No module named 'libacme_that_is_missing'" in line
    assert "\x1b" not in result.out + result.err
    assert "\r" not in result.out + result.err


def test_json_gives_status_tokens_and_an_end(command: Callable, tiny: Path) -> None:
    result = command("run", "-m", tiny, "--backend", "tiny", *GREEDY, "--json", "--logprobs", "2", "-p", "hi")
    first, *tokens, last = result.events
    assert result.code == 0
    assert result.err == ""
    assert first["event"] == "status"
    assert first["backend"] == "tiny"
    assert [t["event"] for t in tokens] == ["token"] * len(tokens)
    assert sum(len(t["token_ids"]) for t in tokens) == 6
    assert len(tokens[0]["logprobs"][0]["top"]) == 2
    assert last["event"] == "end"
    assert last["finish_reason"] == "length"
    assert last["num_output_tokens"] == 6
    assert isinstance(last["seed"], int)


def test_the_same_seed_gives_the_same_answer_and_quiet_says_nothing(command: Callable, tiny: Path) -> None:
    arguments = ("run", "-m", tiny, "-q", "--temp", "1.5", "--seed", "5", "-n", "8", "hi")
    first = command(*arguments)
    assert first.err == ""
    assert command(*arguments).out == first.out


def test_verbose_adds_placement_and_rates(command: Callable, tiny: Path) -> None:
    result = command("run", "-m", tiny, "-v", *GREEDY, "hi")
    assert "all 9 operations native" in result.err
    assert "output 6 tokens" in result.err
    assert "tokens/s" in result.err


def test_a_prompt_comes_from_a_file_or_from_standard_input(
    command: Callable, process: Callable, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text("hi")
    from_file = command("run", "-m", tiny, "-q", *GREEDY, "-f", tmp_path / "prompt.txt")
    assert from_file.out == command("run", "-m", tiny, "-q", *GREEDY, "hi").out
    assert process("run", "-m", tiny, "-q", *GREEDY, stdin="hi\n").out == from_file.out


def test_raw_continues_the_prompt_without_the_template(command: Callable, tiny: Path) -> None:
    *_, last = command("run", "-m", tiny, *GREEDY, "--raw", "--json", "hi").events
    assert last["num_prompt_tokens"] == 3  # BOS and two bytes


def test_another_template_replaces_the_models(command: Callable, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}!")
    *_, last = command("run", "-m", tiny, *GREEDY, "--chat-template", tmp_path / "t.jinja", "--json", "hi").events
    assert last["num_prompt_tokens"] == 3


def test_the_demo_model_answers(command: Callable) -> None:
    result = command("run", "-q", "--temp", "0", "What is the capital of France?")
    assert (result.code, result.out) == (0, "Paris.\n")


def test_a_reader_that_leaves_early_is_no_error(environment: dict[str, str], tiny: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "runtime", "run", "-q", "-m", str(tiny), "--ignore-eos", "-n", "100", "hi"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert started.stdout is not None
    started.stdout.read(1)
    started.stdout.close()
    assert started.stderr is not None
    assert started.stderr.read() == b""
    started.stderr.close()
    assert started.wait(20) == 141


def test_an_interrupt_ends_a_generation_with_its_timing(
    environment: dict[str, str], tmp_path: Path, write_model: Callable
) -> None:
    write_model(tmp_path / "long.gguf", context=100_000)
    started = subprocess.Popen(
        [sys.executable, "-m", "runtime", "run", "-v", "-m", str(tmp_path / "long.gguf"), "--ignore-eos", "hi"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert started.stdout is not None
    started.stdout.read(1)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=20)
    assert started.returncode == 130
    assert out.endswith(b"\n")
    assert b"[stopped]" in err
    assert b"tokens/s" in err
    assert b"Traceback" not in err
