"""From what went wrong to a status code and OpenAI's error shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NoReturn

from runtime.errors import EngineDied, QueueFull, RuntimeFault
from runtime.server.replies import ErrorBody, ErrorReply, encode

_STATUS = {
    "invalid_argument": 400,
    "unsupported": 400,
    "malformed_file": 400,  # a chat template of the model that cannot be compiled; nothing else reaches a request
    "queue_full": 429,
    "engine_died": 503,
    "out_of_memory": 503,
    "cancelled": 503,
    "timed_out": 504,
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_NAMED_FIELD = re.compile(r"(\w+) = ")


class ApiError(Exception):
    """An answer that is an error: status, OpenAI's `message`, `type`, `param` and `code`, and headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        counts: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = ErrorBody(message=message, type=_TYPES[status], param=param, code=code)
        if counts is not None:
            self.body.n_prompt_tokens, self.body.n_ctx = counts

    def to_json(self) -> bytes:
        """The body of the response, or the data of an event."""
        return encode(ErrorReply(error=self.body))


def bad_request(message: str, param: str | None = None, code: str | None = None) -> NoReturn:
    """Refuse a request that the rules exclude."""
    raise ApiError(400, message, param=param, code=code)


def from_fault(error: RuntimeFault) -> ApiError:
    """The answer for a typed error of the floors below."""
    status = _STATUS.get(error.code, 500)
    headers = {}
    if isinstance(error, (QueueFull, EngineDied)):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    elif status == 503:
        headers["retry-after"] = "1"
    field = _NAMED_FIELD.match(error.message) if status == 400 else None
    return ApiError(status, str(error), code=error.code, param=field[1] if field else None, headers=headers)


def too_long(num_prompt_tokens: int, max_model_len: int, param: str, *, at_least: bool = False) -> ApiError:
    """The answer for a prompt that leaves no room in the context: both numbers, in the text and as fields."""
    count = f"at least {num_prompt_tokens}" if at_least else str(num_prompt_tokens)
    return ApiError(
        400,
        f"prompt has {count} tokens, context is {max_model_len} and at least one must be left for the answer; "
        f"shorten it, or start the server with a larger --ctx",
        code="context_length_exceeded",
        param=param,
        counts=(num_prompt_tokens, max_model_len),
    )
