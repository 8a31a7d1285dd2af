"""Routes for those who operate the server: models, health, metrics, version, cache, the page."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from runtime import __version__
from runtime.server.edge import key_of
from runtime.server.exposition import CONTENT_TYPE, Facts, render
from runtime.server.failures import ApiError
from runtime.server.replies import Aborted, ModelCard, ModelList, Status, Version
from runtime.server.requests import AbortRequest
from runtime.server.service import Service
from runtime.server.stream import json_response

_PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self' 'unsafe-inline' data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


async def models(service: Service, _: None, request: Request) -> Response:
    """The names under which the model is served."""
    return json_response(ModelList(data=[_card(service, name) for name in service.settings.model_names]))


async def model(service: Service, _: None, request: Request) -> Response:
    """One served name."""
    name = request.path_params["model"]
    service.check_model(name)
    return json_response(_card(service, name))


async def health(service: Service, _: None, request: Request) -> Response:
    """200 while the engine can answer; otherwise 503 with its state."""
    state = service.llm.state
    return json_response(Status(status="ok" if state == "ready" else state), 200 if state == "ready" else 503)


async def health_alias(service: Service, _: None, request: Request) -> Response:
    """As /health."""
    return await health(service, None, request)


async def live(service: Service, _: None, request: Request) -> Response:
    """200 while this process answers, whatever the engine does: it restarts by itself."""
    return json_response(Status(status="ok"))


async def ready(service: Service, _: None, request: Request) -> Response:
    """200 where new work should be sent here; 503 while the engine restarts and after SIGTERM."""
    state = "draining" if service.is_draining else service.llm.state
    return json_response(Status(status=state), 200 if state == "ready" else 503)


async def metrics(service: Service, _: None, request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    config = service.llm.config
    cache = {
        "cache_dtype": config.kv_format or "auto",
        "enable_prefix_caching": str(config.enable_prefix_caching),
    }
    page = render(service.metrics, service.llm.stats(), Facts(service.model_name, service.llm.state, cache))
    return Response(page, headers={"content-type": CONTENT_TYPE})


async def version(service: Service, _: None, request: Request) -> Response:
    """The version of the package."""
    return json_response(Version(version=__version__))


async def reset_prefix_cache(service: Service, _: None, request: Request) -> Response:
    """Forget every cached prefix that no running request uses."""
    await service.llm.reset_prefix_cache()
    return json_response(Status(status="ok"))


async def abort_requests(service: Service, body: AbortRequest, request: Request) -> Response:
    """End running requests of the same key, by their ids or by the `x-request-id` that they were sent with."""
    key = key_of(request)
    aborted = []
    for request_id in body.request_ids:
        found = [g for g in list(service.generations.values()) if g.answers_to(request_id, key)]
        for generation in found:
            await generation.abort()
        if found:
            aborted.append(request_id)
    return json_response(Aborted(aborted=aborted))


async def page(service: Service, _: None, request: Request) -> Response:
    """The chat page: one self-contained file."""
    file = files("runtime.server").joinpath("page/index.html")
    if not file.is_file():
        raise ApiError(404, "this build has no chat page", code="not_found")
    return Response(file.read_bytes(), media_type="text/html", headers=_PAGE_HEADERS)


def _card(service: Service, name: str) -> ModelCard:
    return ModelCard(id=name, created=service.created, root=service.model_name, max_model_len=service.llm.max_model_len)
