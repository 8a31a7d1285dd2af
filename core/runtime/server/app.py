"""The ASGI application: the table of routes, from which routing, body checks and the OpenAPI document are made."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from runtime.errors import RuntimeFault
from runtime.server import operations, replies, requests
from runtime.server.chat import chat_completions
from runtime.server.completions import completions
from runtime.server.edge import Edge, error_response, note_ignored
from runtime.server.embeddings import embeddings
from runtime.server.failures import ApiError, bad_request, from_fault
from runtime.server.service import Service
from runtime.server.stream import CLIENT_CLOSED_REQUEST
from runtime.server.tokens import detokenize, tokenize

BODY_TIMEOUT_S = 60.0
_MAX_DISCARDED = 8
"""A body that is too long is read on up to so many times the limit: a client that still sends hears no answer."""
_MAX_NAMED = 20
_PLAIN_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_LOCALHOST = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"

Handler = Callable[[Service, Any, Request], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """One route: `body` and `reply` are its structs; `event` is the struct of its stream, if it can stream."""

    method: str
    path: str
    handler: Handler
    body: type[msgspec.Struct] | None = None
    reply: type[msgspec.Struct] | str = ""
    event: type[msgspec.Struct] | None = None


ENDPOINTS = (
    Endpoint("POST", "/v1/chat/completions", chat_completions, requests.ChatCompletionRequest,
             replies.ChatCompletion, replies.ChatChunk),
    Endpoint("POST", "/v1/completions", completions, requests.CompletionRequest,
             replies.Completion, replies.Completion),
    Endpoint("POST", "/v1/embeddings", embeddings, requests.EmbeddingRequest, replies.EmbeddingList),
    Endpoint("GET", "/v1/models", operations.models, None, replies.ModelList),
    Endpoint("GET", "/v1/models/{model:path}", operations.model, None, replies.ModelCard),
    Endpoint("POST", "/tokenize", tokenize, requests.TokenizeRequest, replies.Tokens),
    Endpoint("POST", "/detokenize", detokenize, requests.DetokenizeRequest, replies.Text),
    Endpoint("GET", "/health", operations.health, None, replies.Status),
    Endpoint("GET", "/v1/health", operations.health_alias, None, replies.Status),
    Endpoint("GET", "/live", operations.live, None, replies.Status),
    Endpoint("GET", "/ready", operations.ready, None, replies.Status),
    Endpoint("GET", "/metrics", operations.metrics, None, "text/plain"),
    Endpoint("GET", "/version", operations.version, None, replies.Version),
    Endpoint("POST", "/reset_prefix_cache", operations.reset_prefix_cache, None, replies.Status),
    Endpoint("POST", "/abort_requests", operations.abort_requests, requests.AbortRequest, replies.Aborted),
    Endpoint("GET", "/", operations.page, None, "text/html"),
)  # fmt: skip


def create_app(service: Service) -> Starlette:
    """The application for a service; raises nothing, serves everything of `ENDPOINTS` and the OpenAPI document."""
    routes = [_route(service, endpoint) for endpoint in ENDPOINTS]
    document = _document_route()
    known = frozenset(e.path for e in ENDPOINTS) | {"/openapi.json"}
    middleware = [Middleware(Edge, service=service, known_paths=known)]
    if service.settings.cors_origins:
        middleware.insert(0, _cors(service.settings.cors_origins))
    handlers: dict[Any, Any] = {
        ApiError: _on_api_error,
        RuntimeFault: _on_fault,
        HTTPException: _on_http,
        ClientDisconnect: _on_disconnect,
    }
    return Starlette(routes=[*routes, document], middleware=middleware, exception_handlers=handlers)


def _route(service: Service, endpoint: Endpoint) -> Route:
    decoder = None if endpoint.body is None else msgspec.json.Decoder(endpoint.body)
    known = frozenset(endpoint.body.__struct_fields__ if endpoint.body else ())

    async def answer(request: Request) -> Response:
        body = None
        if decoder is not None:
            body = _decode(await _read(request, service.settings.max_body_bytes), decoder, known, request)
        return await endpoint.handler(service, body, request)

    return Route(endpoint.path, answer, methods=[endpoint.method], name=endpoint.handler.__name__)


def _document_route() -> Route:
    from runtime.server.openapi import document

    @lru_cache(maxsize=1)
    def encoded() -> bytes:
        return msgspec.json.encode(document(ENDPOINTS))

    async def answer(request: Request) -> Response:
        return Response(encoded(), media_type="application/json")

    return Route("/openapi.json", answer, methods=["GET"], name="openapi")


async def _read(request: Request, limit: int) -> bytes:
    """The body; ApiError where it is no JSON by its type, too long, or does not come."""
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        # Not only for order: a page of another origin can send other types here without asking the user's browser.
        raise ApiError(415, f"content type '{content_type}' is not read; send application/json", code="not_json")
    try:
        body = await asyncio.wait_for(_collect(request, limit), BODY_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body was not complete after {BODY_TIMEOUT_S:.0f} s", code="body_timeout") from None
    if body is None:
        raise ApiError(413, f"the body is longer than {limit} bytes", code="body_too_large")
    return body


async def _collect(request: Request, limit: int) -> bytes | None:
    """The body, or None for one that is longer than `limit`."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > _MAX_DISCARDED * limit:
        return None
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= limit:
            parts.append(part)
        elif size > _MAX_DISCARDED * limit:
            break
    return b"".join(parts) if size <= limit else None


def _decode(data: bytes, decoder: msgspec.json.Decoder[Any], known: frozenset[str], request: Request) -> Any:
    """The body as its struct; ApiError that names the field where it is not one."""
    try:
        body = decoder.decode(data)
        names = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        rule, _, place = str(error).partition(" - at `$")
        param = place.rstrip("`").lstrip(".") or None
        bad_request(f"{param or 'the body'}: {rule}", param, "invalid_type")
    except (ValueError, RecursionError) as error:
        bad_request(f"the body is no JSON that can be read: {error}", None, "invalid_json")
    ignored = [name for name in names if name not in known and _PLAIN_NAME.fullmatch(name)]
    if ignored:
        note_ignored(request, ignored[:_MAX_NAMED])
    return body


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_fault(_: Request, error: Exception) -> Response:
    assert isinstance(error, RuntimeFault)
    return error_response(from_fault(error))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        allowed = " or ".join(sorted((error.headers or {}).get("Allow", "another method").split(", ")))
        return error_response(ApiError(405, f"{what}: this route takes {allowed}", code="method_not_allowed",
                                       headers=error.headers))  # fmt: skip
    return error_response(ApiError(404, f"{what}: there is no such route", code="route_not_found"))


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _cors(origins: tuple[str, ...]) -> Middleware:
    plain = [origin for origin in origins if origin != "localhost"]
    return Middleware(
        CORSMiddleware,
        allow_origins=plain,
        allow_origin_regex=_LOCALHOST if "localhost" in origins else None,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "x-ignored-fields", "retry-after"],
    )
