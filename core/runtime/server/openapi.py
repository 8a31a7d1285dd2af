"""The OpenAPI document, made from the table of routes and the structs behind it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from runtime import __version__
from runtime.server.edge import PUBLIC_PATHS
from runtime.server.replies import ErrorReply

if TYPE_CHECKING:
    from runtime.server.app import Endpoint

_REFERENCE = "#/components/schemas/{name}"
_ERRORS = {
    "400": "The request breaks a rule; `param` names the field",
    "401": "The API key is missing or wrong",
    "404": "There is no such model or route",
    "408": "The body did not come in time",
    "413": "The body is too long",
    "415": "The body is not JSON by its content type",
    "429": "The queue is full; Retry-After tells when to come back",
    "500": "The request failed in the server",
    "503": "The engine died, or the server is stopping",
    "504": "The request took longer than the server's limit",
}
_OF_BODIES = ("400", "408", "413", "415", "429", "500", "503", "504")


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """OpenAPI 3.1 as plain data."""
    structs = {t for e in endpoints for t in (e.body, e.reply, e.event) if isinstance(t, type)} | {ErrorReply}
    ordered = sorted(structs, key=lambda t: t.__name__)
    schemas, components = msgspec.json.schema_components(ordered, ref_template=_REFERENCE)
    refs = dict(zip(ordered, schemas))
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        path = endpoint.path.replace(":path}", "}")
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "runtime", "version": __version__, "description": "OpenAI-compatible inference server"},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, refs: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": inspect.cleandoc(endpoint.handler.__doc__ or ""),
        "responses": {"200": _answer(endpoint, refs)},
    }
    statuses = ["500"]
    if endpoint.path not in PUBLIC_PATHS:
        operation["security"] = [{"key": []}]
        statuses += ["401", "503"]
    if "{" in endpoint.path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
        statuses.append("404")
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": refs[endpoint.body]}},
        }
        statuses += [*_OF_BODIES, "404"]
    failure = {"application/json": {"schema": refs[ErrorReply]}}
    for status in sorted(set(statuses)):
        operation["responses"][status] = {"description": _ERRORS[status], "content": failure}
    if endpoint.path in ("/health", "/v1/health", "/ready"):
        operation["responses"]["503"] = {**_answer(endpoint, refs), "description": "Not now; the state says why"}
    return operation


def _answer(endpoint: Endpoint, refs: dict[Any, Any]) -> dict[str, Any]:
    if isinstance(endpoint.reply, str):
        content: dict[str, Any] = {endpoint.reply: {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": refs[endpoint.reply]}}
    if endpoint.event is not None:
        content["text/event-stream"] = {"schema": {"type": "string", "description": _events(endpoint.event)}}
    return {"description": "OK", "content": content}


def _events(event: type[msgspec.Struct]) -> str:
    return f"Events with the data of a {event.__name__}, then [DONE]"
