"""What happens to every HTTP request before and after its route: identity, key, drain, last resort, log."""

from __future__ import annotations

import hmac
import json
import logging
import re
import secrets
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.failures import ApiError
from runtime.server.requests import SamplingFields
from runtime.server.service import Service

LOGGER = logging.getLogger("runtime.server")
PUBLIC_PATHS = frozenset(("/", "/health", "/v1/health", "/live", "/ready"))
"""Open without a key: probes cannot carry one, and the page, which holds nothing secret, asks its user for it."""
QUIET_PATHS = PUBLIC_PATHS - {"/"} | {"/metrics"}
"""What machines ask for every few seconds: not logged unless it fails."""
_TENANT = "runtime.tenant"
_REQUEST = "runtime.request_id"
_IGNORED = "runtime.ignored"
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


def error_response(error: ApiError) -> Response:
    """The error as a response."""
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    return Response(error.to_json(), error.status, headers={**headers, **error.headers}, media_type="application/json")


@dataclass(frozen=True)
class Terms:
    """What of a request is not about its text.

    key                        digest of the key that was shown, "" where none is asked for
    request_id                 as the header `x-request-id` has it
    priority                   smaller runs first, where the policy is "priority"
    tenant                     who gets a fair share of the steps: the key, or the field `user` where no key is asked
                               for; a key that names many users does not get more
    cache_salt                 key and salt: prompts share cached prefixes under both only
    skip_reading_prefix_cache  the whole prompt is computed
    """

    key: str
    request_id: str
    priority: int
    tenant: str
    cache_salt: str
    skip_reading_prefix_cache: bool


def key_of(request: Request) -> str:
    """Digest of the key that a request has shown, "" where none is asked for."""
    digest: str = request.scope.get(_TENANT, "")
    return digest


def terms_of(request: Request, body: SamplingFields) -> Terms:
    """Who asks, and what they want beside the text."""
    key = key_of(request)
    return Terms(
        key=key,
        request_id=request.scope.get(_REQUEST, ""),
        priority=body.priority or 0,
        tenant=key or body.user or "",
        cache_salt=f"{key}/{body.cache_salt}" if body.cache_salt else key,
        skip_reading_prefix_cache=bool(body.skip_reading_prefix_cache) or body.cache_prompt is False,
    )


class Keys:
    """The keys that open the server; compared by digest, all of them each time, so that time tells nothing."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def tenant(self, given: bytes | None) -> str | None:
        """The tenant that a key belongs to: "" where no key is asked for, None where it is wrong or missing."""
        if not self._digests:
            return ""
        digest = sha256(given or b"").digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return digest.hex()[:16] if any(matches) and given is not None else None


class Edge:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, service: Service, known_paths: frozenset[str]) -> None:
        self._app = app
        self._service = service
        self._known_paths = known_paths
        self._keys = Keys(service.settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        scope[_REQUEST] = request_id.decode()
        started, status = time.monotonic(), 0

        async def sender(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id), *_ignored_header(scope)]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        self._service.enter()
        try:
            refusal = self._refusal(scope, headers)
            app = self._app if refusal is None else error_response(refusal)
            await app(scope, receive, sender)
        except Exception:  # a bug of ours fails one request, and tells where
            LOGGER.exception("request %s failed: %s %s", request_id.decode(), scope["method"], scope["path"])
            if not status:
                failure = ApiError(500, "the server failed; its log has the reason", code="internal")
                await error_response(failure)(scope, receive, sender)
        finally:
            self._service.leave()
            path = scope["path"] if scope["path"] in self._known_paths else "other"
            self._service.metrics.count_response(path, status)
            self._log(scope, request_id, status, time.monotonic() - started)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> ApiError | None:
        if scope["path"] in PUBLIC_PATHS:
            return None
        tenant = self._keys.tenant(_given_key(headers))
        if tenant is None:
            return ApiError(
                401,
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
            )
        scope[_TENANT] = tenant
        if self._service.is_draining and scope["method"] == "POST":
            return ApiError(
                503, "the server is stopping and takes no new work", code="draining", headers={"retry-after": "1"}
            )
        return None

    def _log(self, scope: Scope, request_id: bytes, status: int, seconds: float) -> None:
        form = self._service.settings.log_requests
        if form is None or (scope["path"] in QUIET_PATHS and status < 400 and not LOGGER.isEnabledFor(logging.DEBUG)):
            return
        client = scope.get("client") or ("local", 0)
        facts: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "client": client[0],
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(1000 * seconds, 1),
            "request_id": request_id.decode(),
        }
        line = json.dumps(facts) if form == "json" else " ".join(str(f) for f in facts.values())
        print(line.encode("unicode_escape").decode(), file=sys.stderr, flush=True)


def note_ignored(request: Request, names: list[str]) -> None:
    """Remember fields of the body that nobody knows; the response names them."""
    request.scope[_IGNORED] = names


def _ignored_header(scope: Scope) -> list[tuple[bytes, bytes]]:
    names = scope.get(_IGNORED)
    return [(b"x-ignored-fields", ", ".join(names).encode())] if names else []


def _request_id(headers: dict[bytes, bytes]) -> bytes:
    given = headers.get(b"x-request-id", b"")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}".encode()


def _given_key(headers: dict[bytes, bytes]) -> bytes | None:
    kind, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if kind.lower() == b"bearer" else headers.get(b"x-api-key")
