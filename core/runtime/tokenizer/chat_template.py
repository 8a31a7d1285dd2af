"""Chat templates: a conversation to the text that a model was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from runtime.errors import InvalidArgument, MalformedFile

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["ChatTemplate", "select_chat_template"]

_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_CUT_HERE = "CONTINUE_FINAL_MESSAGE_HERE "
_TEMPLATE_FILE = "<template>"  # the name that jinja2 gives to templates that are not files


def select_chat_template(
    templates: Mapping[str, str], *, name: str | None = None, tools: Sequence[Any] | None = None
) -> str:
    """The source of the template `name`; without a name, `tool_use` where there are tools, else `default`.

    InvalidArgument where it is missing: no other template is taken in its place.
    """
    if name is None:
        name = "tool_use" if tools and "tool_use" in templates else "default"
    if name not in templates:
        known = ", ".join(sorted(templates)) or "none"
        raise InvalidArgument(
            f"the model has no chat template {name!r}; it has: {known}",
            remedy="complete a plain prompt instead, or pass a template",
        )
    return templates[name]


class ChatTemplate:
    """A chat template in jinja2's sandbox, rendering as `transformers.apply_chat_template` does.

    source                what the model file holds; MalformedFile with the line where its syntax is wrong
    bos_token, eos_token  what the template may print; empty where the vocabulary has none
    special_tokens        further texts by name, as `pad_token`
    now                   the clock behind `strftime_now`
    max_chars             limit of the rendered text and of every string on the way
    max_steps             limit of loop steps and macro calls
    max_seconds           limit of time

    One difference to transformers: printing a variable that nobody passed is an error, and not an empty text.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        special_tokens: Mapping[str, str] | None = None,
        now: Callable[[], datetime] = datetime.now,
        max_chars: int = 16_000_000,
        max_steps: int = 1_000_000,
        max_seconds: float = 10.0,
    ) -> None:
        from runtime.tokenizer.sandbox import Budget, TemplateEnvironment

        self.source = source
        self._tokens = {**(special_tokens or {}), "bos_token": bos_token, "eos_token": eos_token}
        self._budget = Budget(max_chars, max_steps, max_seconds)
        self._template = _compile(TemplateEnvironment(now), source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        messages                mappings with `role` and `content`, and whatever else the template reads
        tools                   JSON schemas of functions
        add_generation_prompt   end with what makes the model answer; off with `continue_final_message`
        continue_final_message  end inside the last message, so that the model goes on with it
        variables               further variables of the template, such as `enable_thinking=False`

        InvalidArgument with the template's own message where it refuses the conversation, and with the line where it
        fails or exceeds a limit.
        """
        chat = _with_reasoning_names(_messages(messages))
        final = _mark_final_message(chat) if continue_final_message else None
        rendered = self._run(
            {
                **self._tokens,
                **_plain(variables, "variables"),
                "messages": chat,
                "tools": None if tools is None else _plain(list(tools), "tools"),
                "documents": None if documents is None else _plain(list(documents), "documents"),
                "add_generation_prompt": add_generation_prompt and not continue_final_message,
            }
        )
        return rendered if final is None else _cut_after_final_message(rendered, final)

    def _run(self, variables: dict[str, Any]) -> str:
        import jinja2

        from runtime.tokenizer.sandbox import BUDGET_NAME, LimitExceeded, TemplateRefusal

        budget = self._budget.start()
        try:
            parts: list[str] = []
            num_chars = 0
            for part in self._template.generate({**variables, BUDGET_NAME: budget}):
                num_chars += len(part)
                budget.check_size(num_chars)
                parts.append(part)
            return "".join(parts)
        except TemplateRefusal as error:
            raise InvalidArgument(f"the chat template refuses the conversation: {error}") from error
        except LimitExceeded as error:
            raise InvalidArgument(
                f"the chat template was stopped{_line(error)}: {error}", remedy="pass another template"
            ) from error
        except jinja2.UndefinedError as error:
            raise InvalidArgument(
                f"the chat template failed{_line(error)}: {error}",
                remedy="add it to the message or pass it as a variable",
            ) from error
        except Exception as error:  # a template is a program of someone else: it can raise whatever an expression can
            raise InvalidArgument(
                f"the chat template failed{_line(error)}: {type(error).__name__}: {error}",
                remedy="check the messages, or pass another template",
            ) from error


def _compile(environment: Any, source: str) -> Template:
    import jinja2

    try:
        template: Template = environment.compile_counted(source)
    except jinja2.TemplateSyntaxError as error:
        raise MalformedFile(
            f"the chat template is wrong in line {error.lineno}: {error.message}", remedy="pass another template"
        ) from error
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:  # nested beyond what Python can compile
        raise MalformedFile(
            f"the chat template cannot be compiled: {type(error).__name__}: {error}", remedy="pass another template"
        ) from error
    return template


def _line(error: BaseException) -> str:
    """Where in the template the error arose, as ` in line 7`."""
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == _TEMPLATE_FILE:
            line = frame.tb_lineno
        frame = frame.tb_next
    return "" if line is None else f" in line {line}"


def _plain(value: Any, where: str) -> Any:
    """A copy made of JSON types only, so that no method of a caller's object is within the template's reach."""
    if value is None or isinstance(value, bool):
        return value
    for plain_type in (str, int, float):
        if isinstance(value, plain_type):
            return plain_type(value) if type(value) is not plain_type else value
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise InvalidArgument(
        f"{where} is a {type(value).__name__}; a chat template takes JSON types", remedy="convert it to plain data"
    )


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidArgument(f"messages is a {type(messages).__name__}; the rule is a list of mappings")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidArgument(f"messages[{index}] is a {type(message).__name__}; the rule is a mapping")
    plain: list[dict[str, Any]] = _plain(list(messages), "messages")
    return plain


def _with_reasoning_names(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reasoning under each name that templates read it by: `reasoning_content`, and `thinking` where it is missing."""
    for index, message in enumerate(chat):
        reasoning = next((message[key] for key in _REASONING_KEYS if message.get(key) is not None), None)
        if reasoning is not None:
            chat[index] = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return chat


def _text_blocks(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, list):
        for block in reversed(content):
            if isinstance(block, dict) and isinstance(block.get("text"), str):
                yield block


def _mark_final_message(chat: list[dict[str, Any]]) -> str:
    """Put a mark behind the last message's text and return that text."""
    content = chat[-1].get("content") if chat else None
    if isinstance(content, str):
        chat[-1]["content"] = content + _CUT_HERE
        return content
    for block in _text_blocks(content):
        final = str(block["text"])
        block["text"] = final + _CUT_HERE
        return final
    raise InvalidArgument(
        "continue_final_message needs a last message with text content", remedy="add the message to go on with"
    )


def _cut_after_final_message(rendered: str, final: str) -> str:
    """The text up to the mark; templates that trim the content have taken the mark's own space."""
    mark = rendered.rfind(_CUT_HERE.strip())
    if mark < 0 or final.strip() not in rendered:
        raise InvalidArgument(
            "the chat template does not print the last message as it is, so it cannot be continued",
            remedy="leave continue_final_message off",
        )
    before = rendered[:mark]
    return before if rendered.startswith(_CUT_HERE, mark) else before.rstrip()
