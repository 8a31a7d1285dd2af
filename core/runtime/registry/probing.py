"""Probes run in child processes with a time limit: a driver that hangs or crashes becomes a sentence, not our end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import IO, TYPE_CHECKING, Any

from runtime.backend import DeviceInfo
from runtime.registry.cache import ProbeCache

if TYPE_CHECKING:
    from runtime.registry.discovery import LoadedBackend

# Isolated (-I), so that nothing in the current directory is imported by accident; then the parent's own sys.path.
_START = (
    "import json, sys; request = json.loads(sys.argv[1]); sys.path[:] = request['path']; "
    "from runtime.registry.probe_child import main; main(request)"
)
_MAX_ANSWER_BYTES = 1 << 20
_LOG_TAIL_BYTES = 4096


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found: devices, or the reason why there is none.

    refusal    one line; None exactly when there are devices
    remedy     what the plugin advises against the refusal
    detail     traceback, or the last lines that the child wrote: for the plugin's author
    probed_at  when the child ran, in seconds since the epoch
    is_cached  whether it was read from the cache
    """

    devices: tuple[DeviceInfo, ...] = ()
    refusal: str | None = None
    remedy: str | None = None
    detail: str = ""
    probed_at: float = 0.0
    is_cached: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it back equal."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ProbeResult:
        """The result that `to_json` wrote; raises TypeError or KeyError on anything else."""
        devices = tuple(DeviceInfo(**{**d, "notices": tuple(d["notices"])}) for d in data["devices"])
        return cls(**{**data, "devices": devices})


def probe_all(
    backends: Sequence[LoadedBackend], *, timeout_s: float | None = None, use_cache: bool = True
) -> tuple[ProbeResult, ...]:
    """One result per backend, in order; the children run at the same time. Never raises for what a plugin does.

    Each has `timeout_s`, or where that is None what its plugin asks for.

    Without `use_cache` every backend is probed anew, and the new results are cached.
    """
    cache = ProbeCache()
    results: dict[int, ProbeResult] = {}
    children: dict[int, _Child] = {}
    try:
        for i, backend in enumerate(backends):
            known = _cached(cache, backend) if use_cache else None
            if known is not None:
                results[i] = known
            else:
                children[i] = _Child(backend, backend.info.probe_timeout_s if timeout_s is None else timeout_s)
        for i, child in children.items():
            results[i] = child.result()
            cache.store(backends[i], results[i].to_json(), is_refusal=results[i].refusal is not None)
    finally:
        for child in children.values():
            child.kill()
    return tuple(results[i] for i in range(len(backends)))


def _cached(cache: ProbeCache, backend: LoadedBackend) -> ProbeResult | None:
    data = cache.load(backend)
    if data is None:
        return None
    try:
        return replace(ProbeResult.from_json(data), is_cached=True)
    except (TypeError, KeyError, ValueError):
        return None  # written by another version of this file: probing again is the right answer


class _Child:
    """One probe under way."""

    def __init__(self, backend: LoadedBackend, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.deadline = time.monotonic() + timeout_s
        self.answer = b""
        self.log = b""
        self.process: subprocess.Popen[bytes] | None = None
        self.failure = ""
        if not sys.executable:
            self.failure = "this process has no Python interpreter to start the probe with (sys.executable is empty)"
            return
        request = {"name": backend.name, "value": backend.entry_point.value, "path": sys.path}
        options = ["-I", "-X", "faulthandler", *(["-B"] if sys.dont_write_bytecode else [])]
        command = [sys.executable, *options, "-c", _START, json.dumps(request)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a group of its own, so that its children end with it
            )
        except OSError as error:
            self.failure = f"the probe's process could not be started: {error}"
            return
        self.readers = [
            threading.Thread(target=self._read_answer, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._read_log, args=(self.process.stderr,), daemon=True),
        ]
        for reader in self.readers:
            reader.start()

    def result(self) -> ProbeResult:
        """Wait for the answer, until the deadline at most."""
        now = time.time()
        if self.process is None:
            return ProbeResult(refusal=self.failure, probed_at=now)
        try:
            code = self.process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            self._join()
            return ProbeResult(refusal=f"no answer within {self.timeout_s:g} s", detail=self._tail(), probed_at=now)
        self._join()
        if self.answer:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # half an answer is reported as a crash below
                return replace(ProbeResult.from_json(json.loads(self.answer)), probed_at=now)
        return ProbeResult(refusal=_describe_exit(code), detail=self._tail(), probed_at=now)

    def kill(self) -> None:
        """End the child and everything that it started, if it still runs."""
        if self.process is None or self.process.poll() is not None:
            return
        with contextlib.suppress(OSError):  # it may end by itself in this very moment
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()

    def _join(self) -> None:
        for reader in self.readers:
            reader.join(1.0)  # a grandchild may hold the pipe open for ever

    def _read_answer(self, stream: IO[bytes]) -> None:
        with stream:
            self.answer = stream.read(_MAX_ANSWER_BYTES)

    def _read_log(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := stream.read1(_LOG_TAIL_BYTES):  # type: ignore[attr-defined]  # a BufferedReader
                self.log = (self.log + chunk)[-_LOG_TAIL_BYTES:]

    def _tail(self) -> str:
        return self.log.decode("utf-8", "replace").strip()


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"its probe exited with code {code} and gave no answer"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "a signal"
    return f"crashed with {name} (signal {-code})"
