"""One device as torch knows it: its stream, events, pinned memory, and graphs where it has them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from runtime.backend import TimedOut
from runtime_torch.errors import translated


class Accelerator:
    """The device `device_type:index`. On torch's cpu everything is done when a call returns."""

    def __init__(self, device_type: str, index: int) -> None:
        self.is_async = self.has_graphs = device_type != "cpu"
        self.device = torch.device(device_type, index) if self.is_async else torch.device("cpu")
        self._module: Any = getattr(torch, device_type)
        if self.is_async:
            with translated(f"opening {self.device}"):
                self._module.set_device(self.device)
                self.stream = self._module.Stream(device=self.device)

    def use(self) -> AbstractContextManager[Any]:
        """Work that is submitted inside goes to this device's stream."""
        return self._module.stream(self.stream) if self.is_async else nullcontext()

    def mark(self) -> Any:
        """An event behind everything submitted so far; None where nothing is pending."""
        if not self.is_async:
            return None
        event = self._module.Event()
        event.record(self.stream)
        return event

    def synchronize(self) -> None:
        """Wait for everything."""
        if self.is_async:
            with translated("waiting for the device"):
                self.stream.synchronize()

    def memory(self) -> tuple[int, int]:
        """Free and total bytes. What torch holds without using it counts as free."""
        if not self.is_async:
            from runtime.backend import host_memory

            return host_memory()
        free, total = self._module.mem_get_info(self.device)
        held = self._module.memory_reserved(self.device) - self._module.memory_allocated(self.device)
        return min(total, free + held), total

    def pinned(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory of the host that the device reads and writes by itself."""
        return torch.empty(size, dtype=dtype, pin_memory=self.is_async)

    def capture(self, work: Callable[[], None], pool: Any) -> Any:
        """A graph of what `work` submits, to be replayed. `work` must have run before, so that all is compiled."""
        if self.device.type == "xpu":
            graph = self._module.XPUGraph()
            context = self._module.graph(graph, pool=pool, stream=self.stream)
        else:
            graph = self._module.CUDAGraph()
            # what other threads do with their devices, or a communicator's watchdog with this one, ends no capture
            context = self._module.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local")
        with translated("capturing a step (capture=off among the device's options does without)"), context:
            work()
        return graph

    def graph_pool(self) -> Any:
        """Memory that graphs of this device share."""
        return self._module.graph_pool_handle()


def wait_for(event: Any, what: str, timeout_s: float | None) -> None:
    """Wait for an event of the device; raises TimedOut, or what the work met."""
    if event is None:
        return
    with translated(what):
        if timeout_s is None:
            event.synchronize()
            return
        deadline = time.monotonic() + timeout_s
        pause = 1e-5
        while not event.query():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimedOut(f"{what} is not done after {timeout_s:g} s")
            time.sleep(min(pause, left))
            pause = min(2 * pause, 1e-3)


class TorchEvent:
    """Completion of submitted work. `find_fault`, called once when it is done, tells an error that kernels recorded.

    `keep` is memory that the work uses; it is held until then.
    """

    def __init__(
        self, event: Any, what: str, find_fault: Callable[[], Exception | None] | None = None, keep: Any = None
    ) -> None:
        self._event = event
        self._what = what
        self._find_fault = find_fault
        self._keep = keep
        self._error: Exception | None = None
        self._is_settled = False

    def done(self) -> bool:
        """Whether `wait` would return or raise at once."""
        return self._is_settled or self._event is None or bool(self._event.query())

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the work is done; raise its error, or TimedOut."""
        if not self._is_settled:
            try:
                wait_for(self._event, self._what, timeout_s)
                self._error = self._find_fault() if self._find_fault is not None else None
            except TimedOut:
                raise
            except Exception as error:  # noqa: BLE001  (kept: every later wait raises it again)
                self._error = error
            self._is_settled = True
            self._event = self._find_fault = self._keep = None
        if self._error is not None:
            raise self._error


class FailedEvent:
    """The event of work that could not be submitted."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def done(self) -> bool:
        """Always."""
        return True

    def wait(self, timeout_s: float | None = None) -> None:
        """Raise the error."""
        raise self.error
