"""Messages of the server and the engine on stderr, as text or as JSON lines."""

from __future__ import annotations

import json
import logging
import sys
import time

from runtime.server.settings import LogFormat

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object per message, in one line; a traceback is in `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        facts = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=False)


class _Stderr(logging.Handler):
    """Writes to whatever standard error is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def set_up_logs(level: str, form: LogFormat) -> None:
    """Write what the loggers `runtime.*` say at `level` or above to stderr."""
    handler = _Stderr()
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(_TEXT))
    logger = logging.getLogger("runtime")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
