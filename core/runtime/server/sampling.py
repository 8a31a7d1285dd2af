"""From the fields of a request to `SamplingParams`: names, defaults of the model, and the form of the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from runtime.engine.sampling_params import MAX_LOGPROBS, SamplingParams
from runtime.server.failures import bad_request
from runtime.server.requests import ChatCompletionRequest, CompletionRequest, SamplingFields

if TYPE_CHECKING:
    from runtime.engine.async_llm import AsyncLLM
    from runtime.engine.structured import StructuredOutput

_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "min_tokens",
    "n",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "allowed_token_ids",
    "bad_words",
    "logits_processors",
    "logits_processor_args",
)
COMPLETION_MAX_TOKENS = 16
"""What OpenAI's completions generate where nothing is asked for; chat goes on to the end of the context."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "use_beam_search": (False,),
    "truncate_prompt_tokens": (),
    "suffix": ("",),
    "chat_template": (),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"], []),
    "audio": (),
}
"""Fields that this server knows and cannot honour, with the values that ask for nothing."""


def refuse_what_cannot_be_honoured(request: SamplingFields) -> None:
    """Raise for a field whose effect the caller would miss: an answer that ignored it would be a wrong answer."""
    for name, neutral in _NEUTRAL.items():
        value = getattr(request, name, None)
        if value is not None and value not in neutral:
            bad_request(f"{name} is not supported by this server; leave it out", name, "unsupported_parameter")


def chat_sampling(request: ChatCompletionRequest, defaults: SamplingParams) -> SamplingParams:
    """Sampling settings of a chat request."""
    logprobs = None
    if request.logprobs:
        logprobs = request.top_logprobs or 0
        if not 0 <= logprobs <= MAX_LOGPROBS:
            bad_request(f"top_logprobs = {logprobs}: it must be in 0 .. {MAX_LOGPROBS}", "top_logprobs")
    elif request.top_logprobs:
        bad_request("top_logprobs needs logprobs: true", "top_logprobs")
    limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    return _sampling(request, defaults, logprobs, limit, request.prompt_logprobs)


def completion_sampling(request: CompletionRequest, defaults: SamplingParams) -> SamplingParams:
    """Sampling settings of a completion request."""
    limit = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    wanted = [request.prompt_logprobs]
    if request.echo:
        # With max_tokens 0 the prompt is all that is computed.
        wanted += [request.logprobs, 0 if limit == 0 else None]
    counts = [count for count in wanted if count is not None]
    return _sampling(request, defaults, request.logprobs, limit, max(counts, default=None))


def _sampling(
    request: SamplingFields,
    defaults: SamplingParams,
    logprobs: int | None,
    max_tokens: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    refuse_what_cannot_be_honoured(request)
    given = {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
    if request.seed is not None:
        # -1 draws a seed, as other servers have it; every other integer is one, negative ones by their bits.
        given["seed"] = None if request.seed == -1 else request.seed % 2**64
    if request.stream_options is not None and not request.stream:
        bad_request("stream_options needs stream: true", "stream_options")
    if request.prompt_logprobs is not None and request.stream:
        bad_request("prompt_logprobs has no place in a stream; leave out stream", "prompt_logprobs")
    if request.vllm_xargs:
        given["logits_processor_args"] = _flat_arguments(request)
    return defaults.with_(
        **given,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        max_tokens=max_tokens,
        structured=structured_output(request),
    )


def _flat_arguments(request: SamplingFields) -> dict[str, dict[str, Any]]:
    """vLLM's arguments have no names of processors; they are those of the one that the request names."""
    names = request.logits_processors or []
    if len(names) != 1 or request.logits_processor_args:
        bad_request(
            "vllm_xargs are the arguments of the one processor that logits_processors names; for several, "
            "send logits_processor_args",
            "vllm_xargs",
        )
    return {names[0]: dict(request.vllm_xargs or {})}


def structured_output(request: SamplingFields) -> StructuredOutput | None:
    """The one form that the answer must have, or None; raises where several are asked for."""
    wishes = [(name, wish) for name, wish in _wishes(request) if wish is not None]
    if not wishes:
        return None
    if len(wishes) > 1:
        names = " and ".join(name for name, _ in wishes)
        bad_request(f"{names} ask for two forms of one answer; keep one of them", wishes[1][0])
    return wishes[0][1]


def _wishes(request: SamplingFields) -> list[tuple[str, StructuredOutput | None]]:
    outputs = request.structured_outputs
    wishes = [
        ("response_format", _response_format(request)),
        ("guided_json", _json(request.guided_json)),
        ("guided_regex", _form("regex", request.guided_regex)),
        ("guided_choice", _choice(request.guided_choice, "guided_choice")),
        ("guided_grammar", _grammar(request.guided_grammar)),
        ("grammar", _grammar(request.grammar)),
    ]
    if outputs is not None:
        wishes += [
            ("structured_outputs.json", _json(outputs.json)),
            ("structured_outputs.json_object", _form("json_object", "") if outputs.json_object else None),
            ("structured_outputs.regex", _form("regex", outputs.regex)),
            ("structured_outputs.choice", _choice(outputs.choice, "structured_outputs.choice")),
            ("structured_outputs.grammar", _grammar(outputs.grammar)),
        ]
    return wishes


def _response_format(request: SamplingFields) -> StructuredOutput | None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return _form("json_object", "")
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        bad_request("response_format of type json_schema needs json_schema.schema", "response_format.json_schema")
    return _json(wanted.json_schema.schema)


def _form(kind: Any, text: str | None) -> StructuredOutput | None:
    if text is None:
        return None
    from runtime.engine.structured import StructuredOutput

    return StructuredOutput(kind, text)


def _json(schema: dict[str, Any] | bool | str | None) -> StructuredOutput | None:
    if schema is None:
        return None
    return _form("json_schema", schema if isinstance(schema, str) else msgspec.json.encode(schema).decode())


def _choice(choices: list[str] | None, name: str) -> StructuredOutput | None:
    if choices is None:
        return None
    if not choices:
        bad_request("there is nothing to choose from: the list is empty", name)
    return _form("choice", msgspec.json.encode(choices).decode())


def _grammar(text: str | None) -> StructuredOutput | None:
    """GBNF (llama.cpp) and Lark are told apart by GBNF's sign for a rule."""
    return None if text is None else _form("gbnf" if "::=" in text else "lark", text)


async def check_form(llm: AsyncLLM, params: SamplingParams) -> None:
    """Raise for a form that cannot be enforced. Compiling a grammar takes time, so it is not done on the event loop."""
    if params.structured is not None:
        await llm.check_structured(params.structured)
