"""What the server answers: one typed struct per shape, encoded once."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

encode = msgspec.json.Encoder().encode


class ErrorBody(Struct, kw_only=True):
    """What failed, in OpenAI's shape; the two counts are there where a prompt was too long."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    n_prompt_tokens: int | UnsetType = UNSET
    n_ctx: int | UnsetType = UNSET


class ErrorReply(Struct, kw_only=True):
    """Every error of every route."""

    error: ErrorBody


class PromptTokensDetails(Struct, kw_only=True):
    """Of the prompt's tokens, how many were computed before."""

    cached_tokens: int = 0


class Usage(Struct, kw_only=True):
    """Tokens of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET


class TopLogprob(Struct, kw_only=True):
    """One token with its log-probability; `bytes` are its UTF-8 bytes, which may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob, kw_only=True):
    """The chosen token of one position, and the most probable alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, kw_only=True):
    """Log-probabilities of an answer."""

    content: list[ChatLogprob]


class CompletionLogprobs(Struct, kw_only=True):
    """Log-probabilities of a completion: parallel lists by token; the first of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]
    bytes: list[list[int]]


class PromptLogprob(Struct, kw_only=True):
    """A token that the prompt has or could have had at one position; rank 1 is the most probable."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[int, PromptLogprob] | None]
"""Per token of the prompt, the token itself first, then the most probable ones; null for the first token."""


class AnswerMessage(Struct, kw_only=True):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: str | None = None


class Delta(Struct, kw_only=True, omit_defaults=True):
    """What an event adds to the message."""

    role: str | None = None
    content: str | None = None


class ChatChoice(Struct, kw_only=True):
    """One of the `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, kw_only=True):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatChunkChoice(Struct, kw_only=True):
    """What an event adds to one of the answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct, kw_only=True):
    """One event of a streamed answer; the last one has no choices and the usage, where it was asked for."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(Struct, kw_only=True):
    """One continuation; in a stream, what the event adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """Continuations of the prompts; in a stream, one event."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str


class Embedding(Struct, kw_only=True):
    """The vector of one input: numbers, or base64 of little-endian f32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(Struct, kw_only=True):
    """The vectors in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ModelCard(Struct, kw_only=True):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hal-runtime"
    root: str
    parent: str | None = None
    max_model_len: int


class ModelList(Struct, kw_only=True):
    """The served names."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Tokens(Struct, kw_only=True):
    """Token ids of a text, and the context they must fit."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(Struct, kw_only=True):
    """A text, under the names of both servers that clients know."""

    prompt: str
    content: str


class Status(Struct, kw_only=True):
    """Whether, and if not, why not."""

    status: str


class Version(Struct, kw_only=True):
    """What is running."""

    version: str


class Aborted(Struct, kw_only=True):
    """Which of the requests were running and are ended."""

    aborted: list[str]
