"""Runs in the engine's own process: commands come on its input, messages leave on its output, prints go to stderr."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, NoReturn

from runtime.engine.links import serve
from runtime.engine.messages import Command, Failed, Message, read_frame, write_frame


def main(request: Mapping[str, Any]) -> NoReturn:
    """Serve the configuration that comes first until the input ends."""
    commands, messages = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    stacks = Path(request["stacks"]).open("ab", buffering=0)  # noqa: SIM115  open as long as the process lives
    faulthandler.enable(stacks, all_threads=True)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    status = 0
    try:
        config = read_frame(commands)
        inbox: SimpleQueue[Command] = SimpleQueue()
        threading.Thread(target=_receive, args=(commands, inbox), name="commands", daemon=True).start()
        serve(config, inbox, lambda message: write_frame(messages, message))
    except BaseException as error:  # noqa: BLE001  whatever ends the loop is told to the front
        status = 1
        _tell(messages, Failed(_picklable(error), traceback.format_exc()))
    sys.stderr.flush()
    os._exit(status)  # at once: drivers like to crash or hang while the interpreter is taken down


def _receive(commands: BinaryIO, inbox: SimpleQueue[Command]) -> None:
    """Take commands as they come, so that the front never waits for a step; without a front there is nothing to do."""
    try:
        while True:
            inbox.put(read_frame(commands))
    except (EOFError, OSError):
        os._exit(0)


def _tell(messages: BinaryIO, message: Message) -> None:
    try:
        write_frame(messages, message)
    except OSError:
        sys.stderr.write("the engine's front is gone\n")


def _picklable(error: BaseException) -> BaseException:
    import pickle

    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  an error of a plugin can fail to travel in many ways; its text always can
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
