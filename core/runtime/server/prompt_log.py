"""Prompts and answers on disk, where an operator has asked for them."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from runtime.errors import InvalidArgument

LOGGER = logging.getLogger("runtime.server")
_CLOSE_S = 5.0

Record = Callable[[], Mapping[str, Any]]


class PromptLog:
    """One JSON line per request in `folder`/YYYY-MM-DD.jsonl (UTC), readable by the server's user only.

    Lines are made and written in a thread of its own: a request pays for handing over what it has. A line that cannot
    be written is reported once, and the server goes on. Raises InvalidArgument where the folder cannot be used.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = usable_folder(folder)
        self._records: SimpleQueue[Record | None] = SimpleQueue()
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name="prompt log", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Write what `record` returns; it is called in the log's thread."""
        self._records.put(record)

    def close(self) -> None:
        """Write what is left."""
        self._records.put(None)
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while (record := self._records.get()) is not None:
            try:
                _append(self.folder, json.dumps(record(), ensure_ascii=False, default=str) + "\n")
            except OSError as error:
                if not self._has_failed:
                    LOGGER.error("prompts cannot be logged in %s: %s", self.folder, error)
                self._has_failed = True
            except Exception:  # a line that cannot be made is a bug of ours, and no reason to lose those that follow
                LOGGER.exception("a line of the prompt log could not be made")


def usable_folder(folder: str | Path) -> Path:
    """The folder, made if need be; raises InvalidArgument where nothing can be written there."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _append(path, "")
    except OSError as error:
        raise InvalidArgument(
            f"prompts cannot be logged in '{folder}': {error.strerror or error}",
            remedy="give a folder that can be written with --log-prompts",
        ) from error
    return path


def _append(folder: Path, text: str) -> None:
    path = folder / time.strftime("%Y-%m-%d.jsonl", time.gmtime())
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, text.encode("utf-8", "backslashreplace"))
    finally:
        os.close(file)
