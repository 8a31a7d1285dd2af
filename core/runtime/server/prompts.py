"""From the texts of a request to token ids: templates, tokenisation, and what is refused before either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from runtime.server.failures import bad_request, too_long
from runtime.server.requests import MAX_INPUTS, ChatCompletionRequest, PromptInput, TokenizeRequest

if TYPE_CHECKING:
    from runtime.engine.async_llm import AsyncLLM
    from runtime.tokenizer import Tokenizer

T = TypeVar("T")
INLINE_CHARS = 2048
"""Longer texts are tokenised in a thread: shorter ones take less time than the change of threads."""
_MARGIN = 4
"""Normalisation makes texts shorter, but not by so much: NFC writes at most three characters as one."""
_TEMPLATE_ARGUMENTS = ("add_generation_prompt", "continue_final_message", "documents")
_RESERVED = ("messages", "tools", *_TEMPLATE_ARGUMENTS)


async def chat_prompt(llm: AsyncLLM, request: ChatCompletionRequest | TokenizeRequest) -> list[int]:
    """The token ids of a conversation, by the model's template."""
    messages = _messages(request.messages or [], _knows_developer(llm))
    if not llm.has_chat_template:
        bad_request("the model has no chat template; use /v1/completions, or start the server with --chat-template")
    arguments = dict(request.chat_template_kwargs or {})
    for name in _RESERVED:
        if name in arguments:
            bad_request(f"chat_template_kwargs may not hold {name}; it is a field of its own", "chat_template_kwargs")
    for name in _TEMPLATE_ARGUMENTS:
        value = getattr(request, name, None)
        if value is not None:
            arguments[name] = value

    def render() -> list[int]:
        text = llm.render_chat(messages, tools=_tools(request), **arguments)
        _refuse_hopeless(llm, text, "messages")
        return llm.tokenizer.encode_chat(text)

    try:
        return await off_the_loop(render, sum(len(str(m.get("content"))) for m in messages))
    except RecursionError:
        bad_request("the messages are nested too deeply", "messages")


async def plain_prompts(
    llm: AsyncLLM, given: PromptInput, *, add_special: bool, param: str
) -> tuple[list[list[int]], list[str | None]]:
    """Token ids of every prompt, and its text where it was given as text."""
    prompts = _as_prompts(given, param)
    texts = [p if isinstance(p, str) else None for p in prompts]

    def encode() -> list[list[int]]:
        for text in texts:
            _refuse_hopeless(llm, text or "", param)
        return [llm.tokenizer.encode(p, add_special) if isinstance(p, str) else p for p in prompts]

    return await off_the_loop(encode, sum(len(t) for t in texts if t)), texts


async def off_the_loop(work: Callable[[], T], num_chars: int) -> T:
    """The result of `work`, computed in a thread where its text is long."""
    return work() if num_chars <= INLINE_CHARS else await asyncio.to_thread(work)


def _refuse_hopeless(llm: AsyncLLM, text: str, param: str) -> None:
    """Raise for a text that could not fit if all its tokens were the longest of the vocabulary.

    Tokenising some megabytes takes seconds of the processor that the answers of others need.
    """
    tokenizer = llm.tokenizer
    if len(text) <= _MARGIN * llm.max_model_len or tokenizer.model not in ("bpe", "spm", "bytes"):
        return  # elsewhere a token for whatever is unknown can stand for any length
    least = len(text.encode("utf-8", "replace")) // (_MARGIN * _longest_token(tokenizer))
    if least > llm.max_model_len:
        raise too_long(least, llm.max_model_len, param, at_least=True)


@lru_cache(maxsize=1)
def _longest_token(tokenizer: Tokenizer) -> int:
    """Bytes of the longest token of a vocabulary."""
    return max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size))


def _as_prompts(given: PromptInput, param: str) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    if not given:
        bad_request(f"{param} is an empty list; give at least one text or token id", param)
    kinds = {type(item) for item in given}
    if len(kinds) > 1:
        bad_request(f"{param} mixes texts, token ids and lists; give one kind", param)
    if kinds == {int}:
        return [list(given)]  # type: ignore[arg-type]
    if len(given) > MAX_INPUTS:
        bad_request(f"{param} has {len(given)} entries; at most {MAX_INPUTS} are allowed", param)
    return list(given)  # type: ignore[arg-type]


def _tools(request: ChatCompletionRequest | TokenizeRequest) -> list[dict[str, Any]] | None:
    """Tools for the template. A chat that could end in a call is refused: no parser would read the call."""
    if isinstance(request, TokenizeRequest):
        return request.tools or None
    return None


def refuse_tools(request: ChatCompletionRequest) -> None:
    """Raise where the client would wait for tool calls that this server cannot tell from text."""
    choice = request.tool_choice
    if choice == "none" or (choice in (None, "auto") and not request.tools):
        return
    bad_request(
        "tool calls are not parsed by this server yet; leave out tools, or send tool_choice: 'none'",
        "tool_choice" if choice not in (None, "auto") else "tools",
        "unsupported_parameter",
    )


def _messages(messages: Sequence[Mapping[str, Any]], knows_developer: bool) -> list[dict[str, Any]]:
    if not messages:
        bad_request("messages is empty; a conversation needs at least one message", "messages")
    return [_message(dict(m), f"messages[{i}]", knows_developer) for i, m in enumerate(messages)]


def _message(message: dict[str, Any], where: str, knows_developer: bool) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        bad_request(f"{where}.role must be text such as 'user'", f"{where}.role")
    if role == "developer" and not knows_developer:
        message["role"] = "system"
    if isinstance(content, list):
        message["content"] = "\n".join(_text_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    elif content is not None and not isinstance(content, str):
        bad_request(f"{where}.content must be text, a list of parts, or null", f"{where}.content")
    elif content is None:
        message["content"] = None if message.get("tool_calls") else ""
    return message


def _text_part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        bad_request(f"{where} must be an object with type and text", where)
    if part.get("type") not in ("text", "input_text", "refusal"):
        bad_request(f"{where}.type is {part.get('type')!r}; this model takes text only", where)
    text = part.get("text", part.get("refusal"))
    if not isinstance(text, str):
        bad_request(f"{where}.text must be text", where)
    return text


def _knows_developer(llm: AsyncLLM) -> bool:
    """Whether the template has a place for instructions of the role `developer`; elsewhere they are `system`."""
    return any("developer" in source for source in llm.tokenizer.chat_templates.values())
