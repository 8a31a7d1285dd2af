"""What clients ask for reaches the engine; what cannot be honoured is refused, in OpenAI's error shape."""

from __future__ import annotations

from typing import Any

import pytest
from running_server import RunningServer

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def post(server: RunningServer, path: str, body: Any, **more: Any) -> Any:
    with server.client() as client:
        return client.post(path, json=body, **more)


def chat(server: RunningServer, **fields: Any) -> Any:
    return post(server, CHAT, {"messages": HI, **fields})


def last_params(server: RunningServer, **fields: Any) -> Any:
    answer = chat(server, **fields)
    assert answer.status_code == 200, answer.text
    return server.llm.seen[-1].params


def test_sampling_fields_reach_the_engine(fake: RunningServer) -> None:
    params = last_params(
        fake,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        typical_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        logit_bias={"65": -100, "66": 5},
        max_tokens=7,
        min_tokens=2,
        stop=["x", "y"],
        stop_token_ids=[3],
        seed=11,
        ignore_eos=True,
        skip_special_tokens=False,
        include_stop_str_in_output=True,
        allowed_token_ids=[65, 66],
        bad_words=["z"],
        prompt_logprobs=2,
    )
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.typical_p) == (0.5, 0.9, 40, 0.05, 0.9)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (1, -1, 1.1)
    assert params.logit_bias == {65: -100, 66: 5}
    assert (params.max_tokens, params.min_tokens, params.seed) == (7, 2, 11)
    assert (params.stop, params.stop_token_ids) == (("x", "y"), (3,))
    assert (params.include_stop_str_in_output, params.allowed_token_ids) == (True, (65, 66))
    assert (params.bad_words, params.prompt_logprobs) == (("z",), 2)
    assert params.ignore_eos
    assert not params.skip_special_tokens


def test_what_is_not_given_is_the_models_recommendation(fake: RunningServer) -> None:
    params = last_params(fake, temperature=None, top_p=None)
    assert params.temperature == 0.0
    assert params.max_tokens is None
    assert last_params(fake, max_tokens=9, max_completion_tokens=5).max_tokens == 5


def test_every_integer_is_a_seed_and_minus_one_draws_one(fake: RunningServer) -> None:
    assert last_params(fake, seed=-1).seed is None
    assert last_params(fake, seed=-2).seed == 2**64 - 2
    assert last_params(fake, seed=10**30).seed == 10**30 % 2**64


def test_priority_tenant_and_salt_reach_the_engine(fake: RunningServer) -> None:
    chat(fake, priority=-5, cache_salt="team")
    assert terms_seen(fake) == (-5, "", "/team", False)
    chat(fake)
    assert terms_seen(fake) == (0, "", "", False)
    chat(fake, user="Ann", skip_reading_prefix_cache=True)
    assert terms_seen(fake) == (0, "Ann", "", True)
    post(fake, PLAIN, {"prompt": "a", "cache_prompt": False})
    assert terms_seen(fake) == (0, "", "", True)
    post(fake, PLAIN, {"prompt": "a", "cache_prompt": True})
    assert terms_seen(fake) == (0, "", "", False)


def terms_seen(server: RunningServer) -> tuple[Any, ...]:
    seen = server.llm.seen[-1]
    return seen.priority, seen.tenant, seen.cache_salt, seen.skip_reading_prefix_cache


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
            "json_schema",
            '{"type":"object"}',
        ),
        ({"guided_json": {"type": "object"}}, "json_schema", '{"type":"object"}'),
        ({"guided_json": '{"type":"string"}'}, "json_schema", '{"type":"string"}'),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a", "b"]}, "choice", '["a","b"]'),
        ({"guided_grammar": 'root ::= "a"'}, "gbnf", 'root ::= "a"'),
        ({"grammar": 'root ::= "a"'}, "gbnf", 'root ::= "a"'),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "lark", 'start: "a"'),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a"]}}, "choice", '["a"]'),
        ({"structured_outputs": {"json": {"type": "object"}}}, "json_schema", '{"type":"object"}'),
        ({"structured_outputs": {"json_object": True}}, "json_object", ""),
    ],
)
def test_every_spelling_of_a_form_reaches_the_engine(
    fake: RunningServer, fields: dict[str, Any], kind: str, text: str
) -> None:
    wanted = last_params(fake, **fields).structured
    assert (wanted.kind, wanted.text) == (kind, text)


def test_text_is_no_form(fake: RunningServer) -> None:
    assert last_params(fake, response_format={"type": "text"}).structured is None


LONG = "a" * 600
ERRORS: list[tuple[str, Any, int, str | None, str | None, str]] = [
    (CHAT, {"messages": HI, "model": "gpt-4"}, 404, "model", "model_not_found", "served: 'fake', 'alias'"),
    (CHAT, {}, 400, None, "invalid_type", "missing required field `messages`"),
    (CHAT, [], 400, None, "invalid_type", "Expected `object`"),
    (CHAT, {"messages": "hi"}, 400, "messages", "invalid_type", "Expected `array`"),
    (CHAT, {"messages": []}, 400, "messages", None, "at least one message"),
    (CHAT, {"messages": [{}]}, 400, "messages[0].role", None, "must be text"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content", None, "must be text"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content[0]", None,
     "takes text only"),
    (CHAT, {"messages": HI, "temperature": "hot"}, 400, "temperature", "invalid_type", "got `str`"),
    (CHAT, {"messages": HI, "temperature": -1}, 400, "temperature", "invalid_argument", "temperature = -1"),
    (CHAT, {"messages": HI, "top_p": 2}, 400, "top_p", "invalid_argument", "(0, 1]"),
    (CHAT, {"messages": HI, "max_tokens": 0}, 400, "max_tokens", "invalid_argument", "from 1"),
    (CHAT, {"messages": HI, "max_tokens": 1.5}, 400, "max_tokens", "invalid_type", "got `float`"),
    (CHAT, {"messages": HI, "n": 0}, 400, "n", "invalid_type", ">= 1"),
    (CHAT, {"messages": HI, "n": 129}, 400, "n", "invalid_type", "<= 128"),
    (CHAT, {"messages": HI, "logit_bias": {"a": 1}}, 400, None, "invalid_type", "Expected `int`"),
    (CHAT, {"messages": HI, "top_logprobs": 3}, 400, "top_logprobs", None, "logprobs: true"),
    (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 99}, 400, "top_logprobs", None, "0 .. 20"),
    (CHAT, {"messages": HI, "stream_options": {}}, 400, "stream_options", None, "stream: true"),
    (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter", "tool_choice"),
    (CHAT, {"messages": HI, "tool_choice": "required"}, 400, "tool_choice", "unsupported_parameter", "not parsed"),
    (CHAT, {"messages": HI, "functions": [{}]}, 400, "functions", "unsupported_parameter", "leave it out"),
    (CHAT, {"messages": HI, "response_format": {"type": "xml"}}, 400, "response_format.type", "invalid_type", "xml"),
    (CHAT, {"messages": HI, "response_format": {"type": "json_schema"}}, 400, "response_format.json_schema", None,
     "needs json_schema.schema"),
    (CHAT, {"messages": HI, "guided_regex": "a", "guided_choice": ["a"]}, 400, "guided_choice", None, "two forms"),
    (CHAT, {"messages": HI, "guided_regex": "refuse me"}, 400, None, "invalid_argument", "cannot be followed"),
    (CHAT, {"messages": HI, "guided_choice": []}, 400, "guided_choice", None, "empty"),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"messages": []}}, 400, "chat_template_kwargs", None, "own"),
    (CHAT, {"messages": [{"role": "user", "content": LONG}]}, 400, "messages", "context_length_exceeded", "context is 512"),
    (PLAIN, {"prompt": LONG}, 400, "prompt", "context_length_exceeded", "prompt has 601 tokens, context is 512"),
    (PLAIN, {"prompt": []}, 400, "prompt", None, "empty list"),
    (PLAIN, {"prompt": ["a", 1]}, 400, "prompt", None, "mixes"),
    (PLAIN, {"prompt": [[]]}, 400, None, "invalid_argument", "no tokens"),
    (PLAIN, {"prompt": [999]}, 400, None, "invalid_argument", "vocabulary"),
    (PLAIN, {"prompt": "a", "suffix": "b"}, 400, "suffix", "unsupported_parameter", "suffix"),
    (PLAIN, {"prompt": "a", "best_of": 2}, 400, "best_of", "unsupported_parameter", "best_of"),
    (PLAIN, {"prompt": "a", "echo": True, "logprobs": 21}, 400, "logprobs", "invalid_argument", "at most 20"),
    (PLAIN, {"prompt": "a", "prompt_logprobs": -1}, 400, "prompt_logprobs", "invalid_argument", "from 0"),
    (PLAIN, {"prompt": "a", "prompt_logprobs": 1, "stream": True}, 400, "prompt_logprobs", None, "leave out stream"),
    (PLAIN, {"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "invalid_argument", "from 1"),
    (PLAIN, {"prompt": "a", "truncate_prompt_tokens": 1}, 400, "truncate_prompt_tokens", "unsupported_parameter", "leave"),
    (PLAIN, {"prompt": "a", "allowed_token_ids": []}, 400, None, "invalid_argument", "allowed_token_ids is empty"),
    (PLAIN, {"prompt": "a", "bad_words": [""]}, 400, "bad_words", "invalid_argument", "not blank"),
    (PLAIN, {"prompt": "a", "logprobs": True}, 400, "logprobs", "invalid_type", "got `bool`"),
    (PLAIN, {"prompt": "a", "stop": ["x"] * 65}, 400, "stop", "invalid_type", "<= 64"),
    ("/v1/embeddings", {"input": "a", "dimensions": 2}, 400, "dimensions", None, "cannot be shortened"),
    ("/v1/embeddings", {"input": LONG}, 400, "input", "context_length_exceeded", "601"),
    ("/v1/embeddings", {"input": [[]]}, 400, "input", None, "no tokens"),
    ("/tokenize", {}, 400, "prompt", None, "one of prompt, content and messages"),
    ("/tokenize", {"prompt": "a", "content": "a"}, 400, "content", None, "one of"),
    ("/detokenize", {"tokens": [999]}, 400, "tokens", None, "not in the vocabulary"),
    ("/nothing", {}, 404, None, "route_not_found", "no such route"),
    ("/v1/models", {}, 405, None, "method_not_allowed", "takes GET or HEAD"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "param", "code", "text"), ERRORS)
def test_refusals_have_openais_shape(
    fake: RunningServer, path: str, body: Any, status: int, param: str | None, code: str | None, text: str
) -> None:
    answer = post(fake, path, body)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert text in error["message"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


def test_too_long_a_prompt_tells_both_numbers_as_fields(fake: RunningServer) -> None:
    error = post(fake, PLAIN, {"prompt": LONG}).json()["error"]
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (601, 512)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"prompt": "\xff"}', b'{"prompt": NaN}', b"[" * 100_000, b'{"prompt": "\\ud800"}'],
)
def test_what_is_no_json_is_a_400(fake: RunningServer, body: bytes) -> None:
    with fake.client() as client:
        answer = client.post(PLAIN, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in ("invalid_json", "invalid_type")


def test_deep_nesting_where_anything_may_stand_is_a_400(fake: RunningServer) -> None:
    deep = '{"messages":[{"role":"user","content":"x","extra":' + "[" * 900 + "]" * 900 + "}]}"
    with fake.client() as client:
        answer = client.post(CHAT, content=deep, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400)


def test_other_content_types_are_refused(fake: RunningServer) -> None:
    with fake.client() as client:
        answer = client.post(PLAIN, content=b'{"prompt": "a"}', headers={"content-type": "text/plain"})
        assert answer.status_code == 415
        assert client.post(PLAIN, content=b'{"prompt": "a"}').status_code == 200  # none at all: as curl's users expect


def test_unknown_fields_are_named_in_a_header_and_otherwise_ignored(fake: RunningServer) -> None:
    answer = chat(fake, foo=1, **{"bar\r\nx": 2})
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"] == "foo"
    assert "x-ignored-fields" not in chat(fake, user="me").headers


def test_parts_of_a_message_are_joined_and_developers_speak_as_the_system(fake: RunningServer) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    post(fake, CHAT, {"messages": messages})
    request = fake.llm.seen[-1]
    assert fake.llm.tokenizer.decode(request.prompt_token_ids) == "[system]be brief[user]a\nb[assistant]"


def test_an_answer_can_be_continued(fake: RunningServer) -> None:
    messages = [*HI, {"role": "assistant", "content": "He"}]
    post(fake, CHAT, {"messages": messages, "continue_final_message": True, "add_generation_prompt": False})
    assert fake.llm.tokenizer.decode(fake.llm.seen[-1].prompt_token_ids) == "[user]hi[assistant]He"


def test_tools_that_may_not_be_called_are_no_obstacle(fake: RunningServer) -> None:
    assert chat(fake, tools=[{"type": "function"}], tool_choice="none").status_code == 200


def test_tokenize_takes_the_fields_of_both_servers(fake: RunningServer) -> None:
    assert post(fake, "/tokenize", {"prompt": "ab"}).json() == {
        "count": 3, "max_model_len": 512, "tokens": [256, 97, 98], "token_strs": None
    }  # fmt: skip
    assert post(fake, "/tokenize", {"content": "ab"}).json()["tokens"] == [97, 98]
    assert post(fake, "/tokenize", {"content": "ab", "add_special": True}).json()["tokens"] == [256, 97, 98]
    assert post(fake, "/tokenize", {"prompt": "a", "return_token_strs": True}).json()["token_strs"] == ["<s>", "a"]
    assert post(fake, "/tokenize", {"messages": HI}).json()["count"] == len("[user]hi[assistant]")


def test_detokenize_gives_the_text_under_both_names(fake: RunningServer) -> None:
    assert post(fake, "/detokenize", {"tokens": [256, 97, 98]}).json() == {"prompt": "<s>ab", "content": "<s>ab"}


def test_token_ids_are_returned_where_asked_for(fake: RunningServer) -> None:
    answer = post(fake, PLAIN, {"prompt": "a", "max_tokens": 2, "return_token_ids": True}).json()
    assert answer["choices"][0]["token_ids"] == [72, 101]
    assert answer["choices"][0]["prompt_token_ids"] == [256, 97]
    answer = chat(fake, max_tokens=2, return_token_ids=True).json()
    assert answer["choices"][0]["token_ids"] == [72, 101]
    assert len(answer["prompt_token_ids"]) == 19


def test_a_text_that_cannot_fit_is_refused_without_being_tokenised(
    fake: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake.llm.tokenizer, "encode", lambda *_: 1 / 0)
    for path, body in (
        (PLAIN, {"prompt": "é" * 10_000}),
        (CHAT, {"messages": [{"role": "user", "content": "é" * 10_000}]}),
    ):
        error = post(fake, path, body).json()["error"]
        assert error["message"].startswith(
            "prompt has at least 125"
        )  # 20 000 bytes, a margin of 4, no token longer than </s>
        assert error["code"] == "context_length_exceeded"


def test_a_long_text_is_tokenised_as_a_short_one(serve: Any) -> None:
    from fake_async_llm import FakeAsyncLLM

    server = serve(FakeAsyncLLM(max_model_len=100_000))
    assert post(server, PLAIN, {"prompt": "a" * 50_000, "max_tokens": 1}).json()["usage"]["prompt_tokens"] == 50_001
