"""One computation beside the main thread, for work that can overlap the loading of weights."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs `compute` in a thread of its own from `start` on; `result` waits for it and raises its error."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Raise the error now if the computation has already failed."""
        if self._error is not None:
            raise self._error

    def result(self) -> T:
        """The value, as soon as it is there; begins if nobody has."""
        self.start()
        assert self._thread is not None
        self._thread.join()
        self.check()
        return self._values[0]

    def _run(self) -> None:
        try:
            self._values.append(self._compute())
        except BaseException as error:  # noqa: BLE001  (whatever it is, it belongs to the thread that asks for the result)
            self._error = error
