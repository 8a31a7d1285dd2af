"""A prepared step, and how it is run: call by call, or captured once and replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from runtime_torch.accelerator import Accelerator
from runtime_torch.calls import Call, Checks


class Program:
    """The calls of a step at fixed sizes and addresses, made while they are first run: the device begins at once.

    `num_kernels` counts its launches.
    """

    def __init__(self, calls: Iterable[Call], checks: Checks) -> None:
        self._made = iter(calls)
        self._calls: list[Call] = []
        self.checks = checks
        self.num_replays = 0

    @property
    def num_kernels(self) -> int:
        """Launches of a step, once it has run."""
        return len(self._calls)

    def run(self) -> None:
        """Submit everything."""
        for call in self._calls:
            call()
        for call in self._made:
            self._calls.append(call)
            call()


class CapturedProgram(Program):
    """The eager twin first, so that every kernel is built; then a graph of it, replayed from there on."""

    def __init__(
        self, calls: Iterable[Call], checks: Checks, accelerator: Accelerator, pool: Callable[[], Any]
    ) -> None:
        super().__init__(calls, checks)
        self._accelerator = accelerator
        self._pool = pool
        self._has_run = False
        self._graph: Any = None

    def run(self) -> None:
        """Submit everything, as one graph from the second time on."""
        if not self._has_run:
            super().run()
            self._has_run = True
            return
        if self._graph is None:
            self._accelerator.synchronize()
            self._graph = self._accelerator.capture(super().run, self._pool())
        self._graph.replay()
        self.num_replays += 1
