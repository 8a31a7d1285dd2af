"""Starting, asking, killing and replacing workers."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from runtime.backend import DeviceInfo
from runtime.errors import ExecutionFailed
from runtime_conformance.process.messages import Blobs, read_message, write_message

# Isolated (-I), so that nothing in the current directory is imported by accident; then the parent's own sys.path.
_START = (
    "import json, sys; request = json.loads(sys.argv[1]); sys.path[:] = request['path']; "
    "from runtime_conformance.process.worker import main; main(request)"
)
_LOG_TAIL_BYTES = 2000
_THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Set to 1 in judges: they are as many as there are lanes."""


class WorkerCrashed(Exception):  # noqa: N818  (an event, not an error of ours)
    """The process ended; `str` says how."""


class WorkerHung(Exception):  # noqa: N818
    """There was no answer in time; the process was killed."""


class Worker:
    """One process, started at the first question and again after a crash."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = {**request, "path": sys.path}
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[Any] = queue.Queue()
        self._log = b""

    def ask(
        self, header: Mapping[str, Any], blobs: Blobs = (), *, timeout_s: float
    ) -> tuple[dict[str, Any], list[Any]]:
        """Send a question and wait for its answer. Raises WorkerCrashed or WorkerHung."""
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            write_message(process.stdin, header, blobs)
        except OSError:
            raise WorkerCrashed(self._describe_end()) from None
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise WorkerHung(f"no answer within {timeout_s:g} s") from None
        if answer is None:
            raise WorkerCrashed(self._describe_end())
        return answer  # type: ignore[no-any-return]  # what read_message made

    def close(self) -> None:
        """End the process and everything that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):  # it may have ended by itself
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not sent is lost with the process
                    stream.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if not sys.executable:
            raise ExecutionFailed("this process has no Python interpreter to start workers with")
        environment = dict(os.environ)
        if self._request["role"] == "judge":
            environment |= dict.fromkeys(_THREAD_LIMITS, "1")
        process = subprocess.Popen(
            [sys.executable, "-I", "-X", "faulthandler", "-c", _START, json.dumps(self._request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a group of its own, so that its children end with it
        )
        self._process, self._answers, self._log = process, queue.Queue(), b""
        threading.Thread(target=self._read_answers, args=(process, self._answers), daemon=True).start()
        threading.Thread(target=self._read_log, args=(process,), daemon=True).start()
        return process

    def _read_answers(self, process: subprocess.Popen[bytes], answers: queue.Queue[Any]) -> None:
        assert process.stdout is not None
        try:
            while (message := read_message(process.stdout)) is not None:
                answers.put(message)
        except (ValueError, OSError, KeyError, TypeError):  # half an answer, or a pipe that was closed: a crash
            pass
        answers.put(None)

    def _read_log(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with contextlib.suppress(ValueError, OSError):  # closed by `close`
            while chunk := process.stderr.read1(4096):  # type: ignore[attr-defined]  # a BufferedReader
                self._log = (self._log + chunk)[-_LOG_TAIL_BYTES:]

    def _describe_end(self) -> str:
        process, self._process = self._process, None
        if process is None:
            return "the worker is gone"
        try:
            code = process.wait(5)
        except subprocess.TimeoutExpired:
            self._process = process
            self.close()
            return "the worker closed its pipe and did not end"
        last = self._log.decode("utf-8", "replace").strip().splitlines()
        said = f"; last line on stderr: {last[-1]}" if last and code >= 0 else ""
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if code >= 0:
            return f"the worker exited with code {code}{said}"
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name} ({-code})"
        return f"signal {-code}"


def device_request(name: str, value: str, device: DeviceInfo, threads: int | None = None) -> dict[str, Any]:
    """The request that starts a device worker: entry point and device."""
    info = {**asdict(device), "details": dict(device.details), "notices": list(device.notices)}
    return {"role": "device", "name": name, "value": value, "device": info, "threads": threads}
