"""Where the loop of an engine runs: in a thread of this process, or in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from runtime.engine.config import EngineConfig
from runtime.engine.files import OpenedModel
from runtime.engine.loading import Loaded, load
from runtime.engine.loop import EngineLoop
from runtime.engine.messages import Command, Failed, Message, Progress, Ready, Stop, read_frame, write_frame

Deliver = Callable[[Message], None]
"""Called in the thread of the event loop, once per message."""
_DUMP_S = 0.3
"""A stack is written within this time."""
_JOIN_S = 60
"""A thread that hangs in a step longer than this is left behind."""
_START = (
    "import json, sys; request = json.loads(sys.argv[1]); sys.path[:] = request['path']; "
    "from runtime.engine.child import main; main(request)"
)


class Link(Protocol):
    """The way to one loop. Its last message is always Failed, unless it was stopped."""

    def send(self, command: Command) -> None:
        """Hand a command over; never blocks."""

    async def stop(self) -> None:
        """End the loop and free the model."""

    def stack(self) -> str:
        """What the threads of the engine are doing now. May take a moment."""


class ThreadLink:
    """The loop in a thread of this process."""

    def __init__(self, config: EngineConfig, deliver: Deliver, model: OpenedModel) -> None:
        self._config = config
        self._model = model
        self._deliver = deliver
        self._event_loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.loaded: Loaded | None = None
        self._thread.start()

    def send(self, command: Command) -> None:
        """Hand a command over."""
        self._inbox.put(command)

    async def stop(self) -> None:
        """End the loop and free the model."""
        self._inbox.put(Stop())
        await asyncio.to_thread(self._thread.join, _JOIN_S)

    def stack(self) -> str:
        """The stack of the engine's thread."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else "the engine's thread is gone"

    def _run(self) -> None:
        try:
            serve(self._config, self._inbox, self._post, self._model, self._keep)
        except BaseException as error:  # noqa: BLE001  whatever ends the loop is told to those who wait for it
            self._post(Failed(error, traceback.format_exc()))

    def _keep(self, loaded: Loaded) -> None:
        self.loaded = loaded

    def _post(self, message: Message) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            self._event_loop.call_soon_threadsafe(self._deliver, message)


class ProcessLink:
    """The loop in a child process. It ends when this process ends: its input is closed then."""

    def __init__(self, config: EngineConfig, deliver: Deliver) -> None:
        self._deliver = deliver
        self._event_loop = asyncio.get_running_loop()
        self._outbox: SimpleQueue[Command | EngineConfig | None] = SimpleQueue()
        self._is_stopping = False
        self._failed = False
        self._folder = tempfile.TemporaryDirectory(prefix="hal-runtime-")
        self._stacks = Path(self._folder.name, "stacks")
        request = json.dumps({"path": sys.path, "stacks": str(self._stacks)})
        options = ["-I", *(["-B"] if sys.dont_write_bytecode else [])]
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", _START, request],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for the front, which drains
        )
        self._outbox.put(config)
        self._threads = [
            threading.Thread(target=target, name=f"engine-{target.__name__}", daemon=True)
            for target in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, command: Command) -> None:
        """Hand a command over."""
        self._outbox.put(command)

    async def stop(self) -> None:
        """End the loop; a child that does not end by itself is killed."""
        self._is_stopping = True
        self._outbox.put(Stop())
        self._outbox.put(None)
        try:
            await asyncio.wait_for(asyncio.to_thread(self.process.wait, 10), 11)
        except (subprocess.TimeoutExpired, asyncio.TimeoutError):
            self.process.kill()
        await asyncio.to_thread(self._join)

    def stack(self) -> str:
        """The stacks of all threads of the child, written by a signal handler even where it holds every lock."""
        if not hasattr(signal, "SIGUSR1"):
            return "this system has no signal that asks for a stack"
        before = self._stacks.stat().st_size if self._stacks.exists() else 0
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGUSR1)
        time.sleep(_DUMP_S)
        return self._written(before) or "the child wrote no stack"

    def _written(self, start: int) -> str:
        return self._stacks.read_bytes()[start:].decode("utf-8", "replace") if self._stacks.exists() else ""

    def _join(self) -> None:
        self.process.wait()
        self._outbox.put(None)
        for thread in self._threads:
            thread.join(5)
        self._folder.cleanup()

    def _write(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError), self.process.stdin as stream:  # a broken pipe is what the reader notices
            while (message := self._outbox.get()) is not None:
                write_frame(stream, message)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            while True:
                try:
                    message = read_frame(stream)
                except (EOFError, OSError):
                    break
                self._failed = self._failed or isinstance(message, Failed)
                self._post(message)
        code = self.process.wait()
        self._outbox.put(None)
        if not self._is_stopping and not self._failed:
            self._post(Failed(ChildProcessError(_how_it_ended(code)), self._written(0)))

    def _post(self, message: Message) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            self._event_loop.call_soon_threadsafe(self._deliver, message)


def serve(
    config: EngineConfig,
    inbox: SimpleQueue[Command],
    send: Callable[[Message], None],
    model: OpenedModel | None = None,
    keep: Callable[[Loaded], None] = lambda loaded: None,
) -> None:
    """Load the model, say so, and run the loop until Stop; the model is freed however this ends."""
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > 0.1:
            last = time.monotonic()
            send(Progress(done, total))

    loaded = load(config, progress, model)
    try:
        keep(loaded)
        engine = loaded.engine
        loop = EngineLoop(engine, inbox, send)
        send(Ready(engine.max_model_len, engine.vocab_size, config.max_num_seqs, loaded.status, engine.stats()))
        loop.run()
    finally:
        loaded.close()


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"the engine's process ended with exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"the engine's process was killed by signal {-code} ({name})"
