"""What clients may send: one typed struct per route, checked while the JSON is decoded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

TokenIds = list[int]
PromptInput = str | list[str | int | TokenIds]
MAX_STOPS = 64
MAX_BAD_WORDS = 1024
MAX_PROCESSORS = 16
MAX_INPUTS = 2048

_MESSAGE_SCHEMA = {
    "properties": {"role": {"type": "string"}, "content": {"type": ["string", "array", "null"]}},
    "required": ["role"],
}
Message = Annotated[dict[str, Any], Meta(extra_json_schema=_MESSAGE_SCHEMA)]
StopInput = str | Annotated[list[str], Meta(max_length=MAX_STOPS)]
Count = Annotated[int, Meta(ge=1, le=128)]


class StreamOptions(Struct, kw_only=True):
    """What a stream tells beside its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(Struct, kw_only=True):
    """A named schema that the answer must fulfil."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Struct, kw_only=True):
    """The form of the answer, as users of vLLM write it; at most one field."""

    json: dict[str, Any] | bool | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class SamplingFields(Struct, kw_only=True):
    """What completions and chat completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    n: Count | None = None
    stop: StopInput | None = None
    stop_token_ids: Annotated[list[int], Meta(max_length=MAX_STOPS)] | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: int | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: Annotated[list[str], Meta(max_length=MAX_BAD_WORDS)] | None = None
    logits_processors: Annotated[list[str], Meta(max_length=MAX_PROCESSORS)] | None = None
    logits_processor_args: dict[str, dict[str, Any]] | None = None
    vllm_xargs: dict[str, Any] | None = None
    user: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    skip_reading_prefix_cache: bool | None = None
    cache_prompt: bool | None = None
    return_token_ids: bool | None = None

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    grammar: str | None = None

    # Known fields that this server cannot honour: refused unless their value asks for nothing.
    best_of: int | None = None
    use_beam_search: bool | None = None
    truncate_prompt_tokens: int | None = None


class CompletionRequest(SamplingFields, kw_only=True):
    """`POST /v1/completions`: continue a text, token ids, or several of either."""

    prompt: PromptInput
    echo: bool | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None
    suffix: str | None = None


class ChatCompletionRequest(SamplingFields, kw_only=True):
    """`POST /v1/chat/completions`: answer a conversation through the model's own template."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    # Refused unless their value asks for nothing.
    chat_template: str | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None


class EmbeddingRequest(Struct, kw_only=True):
    """`POST /v1/embeddings`: one vector of length 1 for each input."""

    input: PromptInput
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: Literal["mean", "last"] | None = None
    user: str | None = None


class TokenizeRequest(Struct, kw_only=True):
    """`POST /tokenize`: the token ids of a text (`prompt` or `content`) or of a conversation."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """`POST /detokenize`: the text of token ids, special tokens included."""

    tokens: TokenIds
    model: str | None = None


class AbortRequest(Struct, kw_only=True):
    """`POST /abort_requests`: ids of requests to end."""

    request_ids: Annotated[list[str], Meta(max_length=MAX_INPUTS)]
