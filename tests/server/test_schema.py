"""Requests made from the OpenAPI document, right and wrong: none of them gets a 5xx, and every answer is as described."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from running_server import RunningServer

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

EXAMPLES = 25


@pytest.fixture(scope="module")
def description(fake: RunningServer) -> Any:
    """The document as schemathesis reads it from the server."""
    import schemathesis

    return schemathesis.openapi.from_url(f"{fake.url}/openapi.json")


ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/abort_requests"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/health"),
    ("GET", "/v1/health"),
    ("GET", "/version"),
    ("GET", "/metrics"),
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_request_gets_a_5xx(description: Any, fake: RunningServer, method: str, path: str, mode: str) -> None:
    from hypothesis import given
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    operation = description[path][method]

    @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def check(case: Any) -> None:
        response = case.call(base_url=fake.url, timeout=20)
        case.validate_response(
            response, checks=[not_a_server_error, status_code_conformance, response_schema_conformance]
        )

    try:
        check()
    except Unsatisfiable:
        pytest.skip("nothing about this route can be wrong")
    assert fake.llm.running == {}
