"""A graph for the processor, by the rules of CUDA's: capture runs nothing, and replay knows addresses and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from runtime.backend import ExecutionFailed

_HOST_READS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "item", "masked_select", "unique")
"""Operations whose result the host waits for."""


class Graph:
    """What was submitted during capture, with the tensors and numbers of that moment."""

    def __init__(self) -> None:
        self.nodes: list[Callable[[], Any]] = []

    def replay(self) -> None:
        """Run everything, whatever the closures that submitted it would do by now."""
        for node in self.nodes:
            node()


class _Recording(TorchDispatchMode):
    """Writes down operations of torch instead of running them, but for views and the memory of new tensors."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in _HOST_READS:
            raise ExecutionFailed(f"{name} waits for the device, which is not permitted while a step is captured")
        if func._schema.is_mutable:
            self.graph.nodes.append(lambda: func(*args, **kwargs))
            return _written(func, args, kwargs)
        made = func(*args, **kwargs)
        if name in ("empty", "empty_strided", "empty_like", "new_empty") or _is_view(func):
            return made
        if not isinstance(made, torch.Tensor):
            raise ExecutionFailed(
                f"{name} gives {type(made).__name__}, for which the stand-in of a graph has no memory"
            )
        made.fill_(torch.nan if made.is_floating_point() else -1)  # there are no results yet
        self.graph.nodes.append(lambda: made.copy_(func(*args, **kwargs)))
        return made


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _written(func: Any, args: Any, kwargs: Any) -> Any:
    """The arguments that an operation returns because it writes them."""
    named = dict(zip((a.name for a in func._schema.arguments), args)) | dict(kwargs)
    written = [
        named[a.name]
        for a in func._schema.arguments
        if a.alias_info is not None and a.alias_info.is_write and a.name in named
    ]
    count = len(func._schema.returns)
    return None if not count else written[0] if count == 1 else tuple(written[:count])


_recording: list[Graph] = []


def _recorded_launches() -> None:
    """Launches of interpreted kernels are written down while a step is captured."""
    run = interpreter.GridExecutor.__call__
    if getattr(run, "is_recorded", False):
        return

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _recording:
            return _recording[-1].nodes.append(lambda: run(self, *args, **kwargs))
        return run(self, *args, **kwargs)

    launch.is_recorded = True  # type: ignore[attr-defined]
    interpreter.GridExecutor.__call__ = launch


def capture(work: Callable[[], None]) -> Graph:
    """A graph of what `work` submits, which is not run. Raises ExecutionFailed where the host would have to wait."""
    _recorded_launches()
    graph = Graph()
    _recording.append(graph)
    try:
        with _Recording(graph):
            work()
    finally:
        _recording.pop()
    return graph
