"""What operators rely on: keys, health, metrics, limits, TLS, unix sockets, CORS, the OpenAPI document, the log."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_async_llm import FakeAsyncLLM
from running_server import RunningServer

from runtime.errors import InvalidArgument
from runtime.server.app import ENDPOINTS
from runtime.server.edge import PUBLIC_PATHS, Keys
from runtime.server.serve import check_tls, listen
from runtime.server.settings import ServerSettings

Serve = Callable[..., RunningServer]
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def test_every_route_but_the_probes_and_the_page_asks_for_the_key(serve: Serve) -> None:
    server = serve(api_keys=("first", "second"))
    routes = [(e.method, e.path.replace("{model:path}", "fake")) for e in ENDPOINTS]
    with server.client() as client:
        for method, path in [*routes, ("GET", "/openapi.json"), ("GET", "/no/such/route")]:
            for headers in ({}, {"authorization": "Bearer third"}, {"authorization": "Basic first"}, {"x-api-key": ""}):
                answer = client.request(method, path, headers=headers)
                if path in PUBLIC_PATHS:
                    assert answer.status_code in (200, 404), path
                else:
                    assert answer.status_code == 401, path
                    assert answer.json()["error"]["code"] == "invalid_api_key"
                    assert answer.headers["www-authenticate"] == "Bearer"
        for headers in ({"authorization": "Bearer first"}, {"Authorization": "bearer second"}, {"x-api-key": "first"}):
            assert client.get("/v1/models", headers=headers).status_code == 200


def test_every_key_is_a_tenant_of_its_own_and_names_of_users_do_not_change_that(serve: Serve) -> None:
    server = serve(api_keys=("first", "second"))
    with server.client() as client:
        for key, more in (("first", {}), ("second", {}), ("first", {"user": "Ann"}), ("first", {"cache_salt": "a"})):
            client.post("/v1/chat/completions", json={**CHAT, **more}, headers={"x-api-key": key})
    first, second, named, salted = server.llm.seen
    assert first.tenant == named.tenant == salted.tenant != second.tenant
    assert "first" not in first.tenant
    assert len({first.cache_salt, second.cache_salt, salted.cache_salt}) == 3
    assert first.cache_salt == named.cache_salt


def test_all_keys_are_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    calls: list[bytes] = []
    compare = hmac.compare_digest
    monkeypatch.setattr("runtime.server.edge.hmac.compare_digest", lambda a, b: bool(calls.append(a)) or compare(a, b))
    keys = Keys(("a", "b", "c"))
    assert keys.tenant(b"a") is not None
    assert len(calls) == 3
    assert keys.tenant(b"nothing") is None
    assert len(calls) == 6
    assert {len(digest) for digest in calls} == {32}


def test_health_and_readiness_follow_the_engine_and_liveness_does_not(serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        for state, code in (("ready", 200), ("restarting", 503), ("stuck", 503), ("starting", 503)):
            server.llm.state = state
            assert client.get("/health").status_code == code
            assert client.get("/ready").status_code == code
            assert client.get("/ready").json() == {"status": state}
            assert client.get("/live").status_code == 200


def test_a_body_that_is_too_long_is_refused(serve: Serve) -> None:
    server = serve(max_body_bytes=1000)
    with server.client() as client:
        for size in (1100, 5000, 100_000):
            answer = client.post("/v1/completions", json={"prompt": "a" * size})
            assert answer.status_code == 413
            assert answer.json()["error"]["message"] == "the body is longer than 1000 bytes"
        chunks = (b"x" * 500 for _ in range(10))
        answer = client.post("/v1/completions", content=chunks, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_a_request_id_is_given_back_or_made(fake: RunningServer) -> None:
    with fake.client() as client:
        assert client.get("/version", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
        assert client.get("/version").headers["x-request-id"].startswith("req-")
        assert client.get("/version", headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req-")
        assert client.get("/nothing", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"


def test_a_bug_of_ours_is_a_500_in_the_same_shape_and_a_traceback_in_the_log(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    monkeypatch.setattr(server.llm, "stats", lambda: 1 / 0)
    with server.client() as client:
        answer = client.get("/metrics")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "ZeroDivisionError" not in answer.text
    assert "ZeroDivisionError" in caplog.text


def test_the_prefix_cache_can_be_reset(serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        assert client.post("/reset_prefix_cache").status_code == 200
    assert server.llm.num_resets == 1


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}


@pytest.mark.parametrize(
    ("allowed", "origin", "ok"),
    [
        (("https://a.example",), "https://a.example", True),
        (("https://a.example",), "https://b.example", False),
        (("*",), "https://b.example", True),
        (("localhost",), "http://localhost:5173", True),
        (("localhost",), "http://localhost.evil.example", False),
        ((), "https://a.example", False),
    ],
)
def test_pages_of_allowed_origins_may_call(serve: Serve, allowed: tuple[str, ...], origin: str, ok: bool) -> None:
    server = serve(cors_origins=allowed, api_keys=("secret",))
    with server.client() as client:
        preflight = client.options("/v1/chat/completions", headers={"origin": origin, **PREFLIGHT})
        refused = client.get("/v1/models", headers={"origin": origin})
    assert ("access-control-allow-origin" in preflight.headers) is ok
    assert refused.status_code == 401
    assert ("access-control-allow-origin" in refused.headers) is ok  # so that the page can read why


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    paths = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-out", paths[0], "-keyout", paths[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return paths


def test_with_a_certificate_the_server_speaks_tls_only(serve: Serve, certificate: tuple[str, str]) -> None:
    server = serve(ssl_certfile=certificate[0], ssl_keyfile=certificate[1])
    assert server.url.startswith("https://")
    with server.client(verify=ssl.create_default_context(cafile=certificate[0])) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert "[DONE]" in client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text
    with httpx.Client() as client, pytest.raises(httpx.TransportError):
        client.get(server.url.replace("https", "http") + "/health")


def test_a_certificate_that_cannot_be_used_is_refused_before_anything_is_loaded(
    certificate: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match=r"nothing\.pem"):
        check_tls(ServerSettings(ssl_certfile=str(tmp_path / "nothing.pem")))
    with pytest.raises(InvalidArgument, match="cannot be used"):
        check_tls(ServerSettings(ssl_certfile=certificate[0]))
    with pytest.raises(InvalidArgument, match="without its certificate"):
        ServerSettings(ssl_keyfile=certificate[1])


def test_a_unix_socket_serves_and_one_left_behind_is_replaced(serve: Serve, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listen(ServerSettings(uds=path)).close()  # as a killed server leaves it
    server = serve(uds=path)
    assert server.url == f"unix:{path}"
    with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://local") as client:
        assert client.get("/health").status_code == 200
        assert "[DONE]" in client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text
    with pytest.raises(InvalidArgument, match="cannot listen"):
        listen(ServerSettings(uds=path))


def test_a_port_in_use_and_an_unknown_host_are_refused(fake: RunningServer) -> None:
    port = fake.listener.getsockname()[1]
    with pytest.raises(InvalidArgument, match=f":{port}: "):
        listen(ServerSettings(port=port))
    with pytest.raises(InvalidArgument, match=r"cannot listen on 203\.0\.113\.7"):
        listen(ServerSettings(host="203.0.113.7"))


@pytest.mark.parametrize(
    "wrong",
    [{"port": 70_000}, {"api_keys": (" ",)}, {"api_keys": ("ä",)}, {"model_names": ("",)}, {"drain_timeout_s": -1},
     {"max_body_bytes": 0}, {"request_timeout_s": 0}],
)  # fmt: skip
def test_settings_have_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        ServerSettings(**wrong)


def test_the_ready_line_tells_where_what_and_how_much(serve: Serve) -> None:
    server = serve(api_keys=("a",))
    assert server.said == [
        f"ready: {server.url} · model fake, alias · context 512 · 1000 KV blocks of 16 tokens · at most 16 sequences "
        f"· 1 API key"
    ]


def test_the_openapi_document_describes_every_route(fake: RunningServer) -> None:
    with fake.client() as client:
        document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {e.path.replace(":path", "") for e in ENDPOINTS}
    chat = document["paths"]["/v1/chat/completions"]["post"]
    reference = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert schema["required"] == ["messages"]
    assert {"temperature", "stream", "response_format", "cache_salt"} <= set(schema["properties"])
    references = set(re.findall(r'"\$ref": ?"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])


@pytest.mark.oracle
def test_the_openapi_document_is_valid_and_its_schemas_accept_real_answers(fake: RunningServer) -> None:
    import jsonschema_rs

    with fake.client() as client:
        document = client.get("/openapi.json").json()
        for schema in document["components"]["schemas"].values():
            jsonschema_rs.meta.validate(schema)
        for path, name, body in (
            ("/v1/chat/completions", "ChatCompletion", {**CHAT, "logprobs": True, "top_logprobs": 2}),
            ("/v1/completions", "Completion", {"prompt": "a", "logprobs": 1}),
            ("/v1/embeddings", "EmbeddingList", {"input": "a"}),
            ("/tokenize", "Tokens", {"prompt": "a"}),
            ("/tokenize", "ErrorReply", {}),
        ):
            schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
            jsonschema_rs.validate(schema, client.post(path, json=body).json())


def test_a_stop_is_told_and_running_requests_end(serve: Serve, eventually: Callable[..., None]) -> None:
    from threading import Thread

    server = serve(FakeAsyncLLM(delay_s=0.05), drain_timeout_s=5)
    answers: list[httpx.Response] = []
    with server.client() as client, server.client() as other:
        asking = Thread(target=lambda: answers.append(client.post("/v1/chat/completions", json=CHAT)))
        asking.start()
        eventually(lambda: server.llm.num_generated > 1)
        assert other.get("/ready").status_code == 200
        server.signal()
        eventually(lambda: len(server.said) == 2)
        assert other.get("/ready").json() == {"status": "draining"}
        assert other.get("/live").status_code == 200
        refused = other.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["retry-after"] == "1"
        asking.join(5)
    assert answers[0].json()["choices"][0]["message"]["content"] == "Hello, world."
    assert "1 request may go on for 5 s" in server.said[1]
    eventually(lambda: server.server.should_exit)


def test_after_the_deadline_running_requests_are_ended_with_a_reason(serve: Serve) -> None:
    server = serve(FakeAsyncLLM("x" * 400, delay_s=0.02), drain_timeout_s=0.1)
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as s:
        lines = s.iter_lines()
        next(lines)
        server.signal()
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "aborted"
