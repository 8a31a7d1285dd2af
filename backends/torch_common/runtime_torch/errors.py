"""Errors of torch as errors of the contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runtime.backend import DeviceLost, ExecutionFailed, OutOfMemory, RuntimeFault

_LOST = ("illegal memory access", "unspecified launch failure", "device-side assert", "device lost", "unrecoverable")
"""After these a device answers nothing more in this process."""


@contextmanager
def translated(what: str, requested_bytes: int = 0) -> Iterator[None]:
    """Raise what torch raises inside as a typed error; `what` says what was being done."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{what} does not fit in the device's memory: {first_line(error)}",
            remedy="ask for a shorter context or a smaller model",
            requested_bytes=requested_bytes,
        ) from error
    except RuntimeError as error:
        raise typed(what, first_line(error)) from error


def typed(what: str, detail: str) -> RuntimeFault:
    """The error of the contract for a message of the driver."""
    if any(sign in detail.lower() for sign in _LOST):
        return DeviceLost(f"the device does not answer any more: {what} failed with: {detail}")
    return ExecutionFailed(f"{what} failed on the device: {detail}")


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
