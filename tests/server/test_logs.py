"""What the server writes down: a line per request, messages, and prompts where an operator wants them."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_async_llm import FakeAsyncLLM
from running_server import RunningServer

from runtime.errors import InvalidArgument
from runtime.server.logs import set_up_logs
from runtime.server.prompt_log import PromptLog

Serve = Callable[..., RunningServer]
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def logs() -> Iterator[Callable[..., None]]:
    """`set_up_logs`, undone at the end."""
    logger = logging.getLogger("runtime")
    handlers, level = logger.handlers[:], logger.level
    yield set_up_logs
    logger.handlers[:] = handlers
    logger.setLevel(level)


def lines_of(capfd: pytest.CaptureFixture[str], eventually: Callable[..., None], count: int) -> list[str]:
    lines: list[str] = []

    def are_there() -> bool:  # a line is written after the answer has gone
        lines.extend(capfd.readouterr().err.splitlines())
        return len(lines) >= count

    eventually(are_there)
    return lines


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_per_request_is_logged_on_demand(
    serve: Serve, form: str, capfd: pytest.CaptureFixture[str], eventually: Callable[..., None]
) -> None:
    server = serve(log_requests=form)
    with server.client() as client:
        client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "abc"})
        client.get("/a\u2028b%0aforged")
    first, second = lines_of(capfd, eventually, 2)
    if form == "json":
        facts = json.loads(first)
        assert (facts["method"], facts["path"], facts["status"]) == ("POST", "/v1/chat/completions", 200)
        assert facts["request_id"] == "abc"
    else:
        assert "POST /v1/chat/completions 200" in first
    assert "404" in second
    assert "hi" not in first


def test_probes_are_logged_only_where_they_fail_or_at_the_level_debug(
    serve: Serve, logs: Callable[..., None], capfd: pytest.CaptureFixture[str], eventually: Callable[..., None]
) -> None:
    server = serve(log_requests="text")
    with server.client() as client:
        for path in ("/health", "/v1/health", "/live", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
        server.llm.state = "restarting"
        assert client.get("/ready").status_code == 503
        client.get("/version")
        assert [line.split()[2:5] for line in lines_of(capfd, eventually, 2)] == [
            ["GET", "/ready", "503"],
            ["GET", "/version", "200"],
        ]
        logs("debug", "text")
        client.get("/live")
        assert "/live 200" in lines_of(capfd, eventually, 1)[0]


def test_nothing_is_logged_otherwise(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    server = serve()
    with server.client() as client:
        client.post("/v1/chat/completions", json=CHAT)
        client.get("/nothing")
    assert capfd.readouterr() == ("", "")


def test_messages_have_a_level_and_a_form(logs: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("runtime.engine")
    logs("error", "text")
    log.warning("unheard")
    log.error("the engine died: %s", "why")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" ERROR runtime.engine: the engine died: why")
    logs("info", "json")
    try:
        raise ValueError("inner")
    except ValueError:
        log.exception("it\nfailed")
    (line,) = capsys.readouterr().err.splitlines()
    facts = json.loads(line)
    assert (facts["level"], facts["logger"], facts["message"]) == ("error", "runtime.engine", "it\nfailed")
    assert "ValueError: inner" in facts["traceback"]


def records(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_prompts_and_answers_are_written_where_asked_for(
    serve: Serve, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    folder = tmp_path / "log"
    server = serve(log_prompts=str(folder))
    with server.client() as client:
        headers = {"x-request-id": "abc"}
        client.post("/v1/chat/completions", json={**CHAT, "seed": 3, "user": "Ann"}, headers=headers)
        client.post("/v1/completions", json={"prompt": ["é\n", "b"], "n": 2, "max_tokens": 2, "stream": True})
    eventually(lambda: len(records(folder)) == 2)
    chat, plain = records(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert chat["prompts"] == ["[user]hi[assistant]"]
    assert chat["answers"] == [{"text": "Hello, world.", "num_tokens": 13, "finish_reason": "stop"}]
    assert (chat["request_id"], chat["tenant"], chat["model"], chat["error"]) == ("abc", "Ann", "fake", None)
    assert chat["params"] == {"temperature": 0.0, "seed": 3}
    assert (chat["num_prompt_tokens"], chat["num_cached_tokens"]) == (19, 16)
    assert chat["id"].startswith("chatcmpl-")
    assert [answer["text"] for answer in plain["answers"]] == ["He"] * 4
    assert plain["prompts"] == ["<s>é\n", "<s>b"]


def test_what_failed_or_was_left_is_written_as_far_as_it_came(
    serve: Serve, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    server = serve(FakeAsyncLLM(fail_after=2), log_prompts=str(tmp_path))
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 500
    eventually(lambda: len(records(tmp_path)) == 1)
    (record,) = records(tmp_path)
    assert record["error"] == "the request failed: NaN"
    assert record["answers"] == [{"text": "He", "num_tokens": 2, "finish_reason": None}]


def test_a_folder_that_cannot_be_written_is_an_error_and_a_disk_that_is_full_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match=r"prompts cannot be logged in .*--log-prompts"):
        PromptLog(tmp_path / "file" / "below")
    log = PromptLog(tmp_path / "log")
    for file in log.folder.iterdir():
        file.unlink()
    log.folder.rmdir()
    for _ in range(3):
        log.write(lambda: {"a": 1})
    log.write(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    log.close()
    assert [r.message.split(" in ")[0] for r in caplog.records] == [
        "prompts cannot be logged",
        "a line of the prompt log could not be made",
    ]
