"""Errors of pyopencl as errors of the contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runtime.backend import DeviceLost, ExecutionFailed, OutOfMemory, RuntimeFault

_NO_MEMORY = {"MEM_OBJECT_ALLOCATION_FAILURE", "OUT_OF_RESOURCES", "OUT_OF_HOST_MEMORY", "INVALID_BUFFER_SIZE"}
_LOST = {"DEVICE_NOT_AVAILABLE", "INVALID_COMMAND_QUEUE", "INVALID_CONTEXT", "INVALID_DEVICE"}


@contextmanager
def translated(what: str, requested_bytes: int = 0) -> Iterator[None]:
    """Raise what pyopencl raises inside as a typed error; `what` says what was being done."""
    import pyopencl as cl

    try:
        yield
    except cl.Error as error:
        raise typed(what, status_name(error.code), str(error), requested_bytes) from error


def typed(what: str, status: str, detail: str = "", requested_bytes: int = 0) -> RuntimeFault:
    """The error of the contract for an OpenCL status."""
    first_line = detail.splitlines()[0] if detail else status
    if status in _NO_MEMORY:
        size = f" ({requested_bytes} bytes)" if requested_bytes else ""
        return OutOfMemory(
            f"{what}{size} does not fit in the OpenCL device's memory: {first_line}",
            remedy="ask for a shorter context or a smaller model",
            requested_bytes=requested_bytes,
        )
    if status in _LOST:
        return DeviceLost(f"the OpenCL device does not answer any more: {what} failed with {first_line}")
    return ExecutionFailed(f"{what} failed on the OpenCL device: {first_line}")


def status_name(code: int) -> str:
    """The name of an OpenCL status code, without CL_."""
    import pyopencl as cl

    names: dict[int, str] = {
        value: name for name, value in vars(cl.status_code).items() if name.isupper() and not name.startswith("_")
    }
    return names.get(code, f"status {code}")
