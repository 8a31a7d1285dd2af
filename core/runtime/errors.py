"""Every error that a user, a file, a device or a plugin can cause.

RuntimeFault                    code              scope     retryable
├── InvalidArgument             invalid_argument  request
├── MalformedFile               malformed_file    request
├── PluginRejected              plugin_rejected   process
├── Unsupported                 unsupported       plan                 carries .reasons
│   └── FallbackForbidden       fallback_forbidden plan
├── OutOfMemory                 out_of_memory     request   yes        carries .requested_bytes, .available_bytes
├── ExecutionFailed             execution_failed  stream
├── NumericFault                numeric_fault     request
├── DeviceLost                  device_lost       device
├── CollectiveFailed            collective_failed device               carries .rank
├── TimedOut                    timed_out         stream    yes
├── QueueFull                   queue_full        request   yes        carries .retry_after_s, .limit
├── EngineDied                  engine_died       process   yes        carries .retry_after_s
└── Cancelled                   cancelled         request

A message says what failed, the values, the rule and the remedy. `assert` is for our own invariants only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

Scope = Literal["request", "plan", "stream", "device", "process"]

__all__ = [
    "Cancelled",
    "CollectiveFailed",
    "DeviceLost",
    "EngineDied",
    "ExecutionFailed",
    "FallbackForbidden",
    "InvalidArgument",
    "MalformedFile",
    "NumericFault",
    "OutOfMemory",
    "PluginRejected",
    "QueueFull",
    "RuntimeFault",
    "Scope",
    "TimedOut",
    "Unsupported",
]


class RuntimeFault(Exception):  # noqa: N818  (the root is a fault; its leaves say what happened)
    """Root of all typed errors.

    `message` is one sentence with the values and the rule; `remedy`, where there is one, says what to do.
    """

    code: ClassVar[str] = "internal"
    scope: ClassVar[Scope] = "process"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message

    def to_json(self) -> dict[str, Any]:
        """The error as plain data: code, scope, retryable, message, remedy."""
        return {
            "code": self.code,
            "scope": self.scope,
            "retryable": self.retryable,
            "message": self.message,
            "remedy": self.remedy,
        }


class InvalidArgument(RuntimeFault):
    """The caller passed something that the rules exclude; nothing else is affected."""

    code = "invalid_argument"
    scope = "request"


class MalformedFile(RuntimeFault):
    """A file breaks its format: truncated, out of bounds, inconsistent, or of another version."""

    code = "malformed_file"
    scope = "request"


class PluginRejected(RuntimeFault):
    """A plugin could not be imported, validated, probed or opened."""

    code = "plugin_rejected"
    scope = "process"


class Unsupported(RuntimeFault):
    """A well-formed wish that nobody present can fulfil; `reasons` holds one line per refusal."""

    code = "unsupported"
    scope = "plan"

    def __init__(self, message: str, *, remedy: str | None = None, reasons: Sequence[str] = ()) -> None:
        super().__init__(message, remedy=remedy)
        self.reasons = tuple(reasons)

    def __str__(self) -> str:
        shown = "; ".join(self.reasons[:3])
        more = f" (and {len(self.reasons) - 3} more reasons)" if len(self.reasons) > 3 else ""
        return (
            f"{self.message}: {shown}{more}" + (f"; {self.remedy}" if self.remedy else "")
            if shown
            else super().__str__()
        )

    def to_json(self) -> dict[str, Any]:
        """As the base class, with `reasons`."""
        return {**super().to_json(), "reasons": list(self.reasons)}


class FallbackForbidden(Unsupported):
    """Placement would have needed the host or a decomposition, and the policy forbids it."""

    code = "fallback_forbidden"


class OutOfMemory(RuntimeFault):
    """A pool cannot hold what was asked of it."""

    code = "out_of_memory"
    scope = "request"
    retryable = True

    def __init__(
        self, message: str, *, remedy: str | None = None, requested_bytes: int = 0, available_bytes: int = 0
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.requested_bytes = requested_bytes
        self.available_bytes = available_bytes


class ExecutionFailed(RuntimeFault):
    """A kernel or executable failed; its stream must be reset before further use."""

    code = "execution_failed"
    scope = "stream"


class NumericFault(RuntimeFault):
    """NaN or infinity where the model cannot have one."""

    code = "numeric_fault"
    scope = "request"


class DeviceLost(RuntimeFault):
    """The device does not answer any more; everything on it is gone."""

    code = "device_lost"
    scope = "device"


class CollectiveFailed(RuntimeFault):
    """A collective did not complete, usually because a peer died."""

    code = "collective_failed"
    scope = "device"

    def __init__(self, message: str, *, remedy: str | None = None, rank: int | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.rank = rank


class TimedOut(RuntimeFault):
    """A time limit passed."""

    code = "timed_out"
    scope = "stream"
    retryable = True


class QueueFull(RuntimeFault):
    """As much waits as may wait; `retry_after_s` is when there may be room, `limit` the setting that refuses."""

    code = "queue_full"
    scope = "request"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        retry_after_s: float = 1.0,
        limit: Literal["max_queued_requests", "max_queued_tokens"] = "max_queued_requests",
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after_s = retry_after_s
        self.limit = limit


class EngineDied(RuntimeFault):
    """The engine ended while it was needed; `retry_after_s` is when a restarted one may answer."""

    code = "engine_died"
    scope = "process"
    retryable = True

    def __init__(self, message: str, *, remedy: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after_s = retry_after_s


class Cancelled(RuntimeFault):
    """The caller withdrew the request."""

    code = "cancelled"
    scope = "request"
