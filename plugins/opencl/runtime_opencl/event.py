"""Completion of commands on a queue, with the error that they met."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from runtime.backend import RuntimeFault, TimedOut
from runtime_opencl.errors import status_name, translated, typed


class CommandEvent:
    """Wraps an OpenCL event. `find_fault`, called once when the work is done, tells an error that kernels recorded.

    `keep` is host memory that the commands use; it is held until they are done.
    """

    def __init__(
        self, event: Any, what: str, find_fault: Callable[[], RuntimeFault | None] | None = None, keep: Any = None
    ) -> None:
        self._event = event
        self._what = what
        self._find_fault = find_fault
        self._keep = keep
        self._error: RuntimeFault | None = None
        self._is_settled = False

    def done(self) -> bool:
        """Whether `wait` would return or raise at once."""
        return self._is_settled or self._status() <= 0

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the work is done; raise its error, or TimedOut."""
        if not self._is_settled:
            if timeout_s is not None:
                self._poll(timeout_s)
            self._settle()
        if self._error is not None:
            raise self._error

    def _status(self) -> int:
        with translated(self._what):
            return int(self._event.command_execution_status)

    def _poll(self, timeout_s: float) -> None:
        """OpenCL has no wait with a limit: look again and again, ever less often."""
        deadline = time.monotonic() + timeout_s
        pause = 1e-5
        while self._status() > 0:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimedOut(f"{self._what} is not done after {timeout_s:g} s")
            time.sleep(min(pause, left))
            pause = min(2 * pause, 1e-3)

    def _settle(self) -> None:
        try:
            status = self._status()
            if status > 0:
                with translated(self._what):
                    self._event.wait()
                status = self._status()
            if status < 0:
                self._error = typed(self._what, status_name(status))
            elif self._find_fault is not None:
                self._error = self._find_fault()
        except RuntimeFault as error:
            self._error = error
        self._is_settled = True
        self._event = self._find_fault = self._keep = None


class FailedEvent:
    """The event of work that could not be submitted."""

    def __init__(self, error: RuntimeFault) -> None:
        self.error = error

    def done(self) -> bool:
        """Always."""
        return True

    def wait(self, timeout_s: float | None = None) -> None:
        """Raise the error."""
        raise self.error
