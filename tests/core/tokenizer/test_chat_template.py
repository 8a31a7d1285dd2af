"""Chat templates: what they may print, what they may not do, and what their errors say."""

from __future__ import annotations

import itertools
import os
import re
from datetime import datetime
from pathlib import Path

import pytest

from runtime.errors import InvalidArgument, MalformedFile
from runtime.tokenizer import ByteTokenizer, ChatTemplate, select_chat_template

SHARED = Path(os.environ.get("RUNTIME_SHARED") or Path(__file__).resolve().parents[4] / "shared")
TEMPLATES = sorted((SHARED / "data" / "templates").glob("*.jinja"))
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = [{"role": "user", "content": "Hi"}]


def refused(source: str, **limits: object) -> str:
    with pytest.raises(InvalidArgument) as caught:
        ChatTemplate(source, **limits).render(USER)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_conversation_ends_with_the_generation_prompt_unless_it_is_switched_off() -> None:
    template = ChatTemplate(CHATML)
    assert template.render(USER) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(USER, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_blocks_take_their_line_away_and_tokens_are_variables() -> None:
    source = "{{ bos_token }}\n  {% if true %}\nx{{ eos_token }}{{ pad_token }}\n  {% endif %}\n"
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", special_tokens={"pad_token": "<pad>"})
    assert template.render(USER) == "<s>\nx</s><pad>\n"


def test_json_keeps_letters_and_html_as_they_are() -> None:
    assert ChatTemplate("{{ messages | tojson }}").render([{"role": "user", "content": "<é>"}]) == (
        '[{"role": "user", "content": "<é>"}]'
    )
    assert ChatTemplate("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}").render(USER) == (
        '{\n  "a": 2,\n  "b": 1\n}'
    )


def test_the_generation_tag_loop_controls_and_the_clock_are_there() -> None:
    source = "{% generation %}g{% endgeneration %}{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert ChatTemplate(source).render(USER) == "g01"
    clock = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2024, 7, 26))
    assert clock.render(USER) == "26 Jul 2024"


def test_loop_variables_see_the_true_length() -> None:
    source = "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ '.' if loop.last else ',' }}{% endfor %}"
    assert ChatTemplate(source).render(USER * 3) == "1/3,2/3,3/3."


def test_the_last_message_can_be_continued() -> None:
    chat = [*USER, {"role": "assistant", "content": "Sure: "}]
    assert ChatTemplate(CHATML).render(chat, continue_final_message=True) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nSure: "
    )
    with pytest.raises(InvalidArgument, match="text content"):
        ChatTemplate(CHATML).render([], continue_final_message=True)


def test_a_refusal_carries_the_templates_own_message() -> None:
    assert refused("{{ raise_exception('System role not supported') }}") == (
        "the chat template refuses the conversation: System role not supported"
    )


def test_printing_a_variable_that_nobody_passed_is_an_error_with_its_line() -> None:
    assert refused("a\n{{ date_string }}") == (
        "the chat template failed in line 2: 'date_string' is undefined; add it to the message or pass it as a variable"
    )
    assert ChatTemplate("{{ date_string }}").render(USER, date_string="today") == "today"
    assert ChatTemplate("{% if tools is defined and not x %}{{ messages[0].name }}ok{% endif %}").render(USER) == "ok"


def test_a_syntax_error_is_a_malformed_file_with_its_line() -> None:
    with pytest.raises(MalformedFile, match="line 2"):
        ChatTemplate("a\n{% if %}")
    with pytest.raises(MalformedFile):
        ChatTemplate("{{ " + "(" * 5000 + ")" * 5000 + " }}")


def test_messages_must_be_mappings_of_plain_data() -> None:
    with pytest.raises(InvalidArgument, match=r"messages\[0\] is a str"):
        ChatTemplate(CHATML).render(["Hi"])  # type: ignore[list-item]
    with pytest.raises(InvalidArgument, match=r"messages\[0\].content is a object"):
        ChatTemplate(CHATML).render([{"role": "user", "content": object()}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['jinja2'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ dict.__globals__ }}",
        "{% set ns = namespace(__class__=1) %}",
        "{{ messages.append(1) }}",
        "{{ self._TemplateReference__context.environment }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    try:
        rendered = ChatTemplate(source).render(USER)
    except InvalidArgument as error:
        rendered = str(error)
    assert rendered == "" or re.search("unsafe|no attribute|cannot hold|undefined", rendered)


@pytest.mark.parametrize(
    "source",
    [
        "{{ range(1000000000) | list }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% set x = b %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 1000000000 * ['a'] }}",
        "{{ 10 ** 1000000000 }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a' | batch(1000000000, 'x') | list }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ {} | tojson(indent=1000000000) }}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
        "{% for a in range(9999) %}{{ 'a' * 10000 }}{% endfor %}",
    ],
)
def test_a_template_cannot_exhaust_time_or_memory(source: str) -> None:
    assert refused(source, max_chars=1_000_000, max_steps=20_000).startswith("the chat template")


def test_a_template_that_runs_too_long_is_stopped() -> None:
    source = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    assert "longer than 0.05 s" in refused(source, max_seconds=0.05, max_steps=10**9)


def test_the_template_for_tools_is_taken_where_there_are_tools_and_never_another_one() -> None:
    templates = {"default": "d", "tool_use": "t"}
    assert select_chat_template(templates) == "d"
    assert select_chat_template(templates, tools=[{}]) == "t"
    assert select_chat_template({"default": "d"}, tools=[{}]) == "d"
    with pytest.raises(InvalidArgument, match="no chat template 'rag'; it has: default, tool_use"):
        select_chat_template(templates, name="rag")
    with pytest.raises(InvalidArgument, match="it has: none"):
        ByteTokenizer().chat_template()


def test_a_tokenizer_binds_its_template_to_its_tokens() -> None:
    tokenizer = ByteTokenizer(chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    rendered = tokenizer.chat_template().render(USER)
    assert rendered == "<s>Hi</s>"
    assert tokenizer.encode_chat(rendered) == [256, 72, 105, 257]
    assert tokenizer.encode(rendered) == [256, 72, 105, 257]


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather <now>, même ici",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "a city"},
                "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
            },
            "required": ["city"],
        },
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": "sunny"}
CONVERSATIONS: dict[str, tuple[list[dict[str, object]], list[dict[str, object]] | None]] = {
    "one question": ([{"role": "user", "content": " Hi there "}], None),
    "system and turns": (
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"},
            {"role": "user", "content": "Bye 😀"},
        ],
        None,
    ),
    "tools": ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"}], [TOOL]),
    "a call and its result": ([{"role": "user", "content": "Weather?"}, CALL, RESULT], [TOOL]),
    "a call without content": (
        [{"role": "user", "content": "Weather?"}, {k: v for k, v in CALL.items() if k != "content"}, RESULT],
        [TOOL],
    ),
    "reasoning": (
        [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4", "reasoning_content": "adds"},
            {"role": "user", "content": "and 3?"},
        ],
        None,
    ),
    "two users": ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], None),
}
OPTIONS: list[dict[str, bool]] = [{}, {"enable_thinking": True}, {"enable_thinking": False}]


@pytest.mark.oracle
@pytest.mark.skipif(not TEMPLATES, reason="../shared/data/templates is absent")
@pytest.mark.parametrize("path", TEMPLATES, ids=[path.stem for path in TEMPLATES])
def test_real_templates_render_as_transformers_renders_them(path: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = path.read_text(encoding="utf-8")
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    num_rendered = 0
    for (name, (messages, tools)), prompt, options in itertools.product(CONVERSATIONS.items(), (True, False), OPTIONS):
        expected: str | None
        try:
            (expected,), _ = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=source,
                add_generation_prompt=prompt,
                bos_token="<s>",
                eos_token="</s>",
                **options,
            )
        except Exception as error:  # noqa: BLE001  (whatever it raises, ours is to refuse with its message)
            expected, refusal = None, str(error)
        if expected is None:
            with pytest.raises(InvalidArgument) as caught:
                template.render(messages, tools=tools, add_generation_prompt=prompt, **options)
            assert refusal in str(caught.value), name
        else:
            num_rendered += 1
            assert template.render(messages, tools=tools, add_generation_prompt=prompt, **options) == expected, name
    assert num_rendered > 0


@pytest.mark.skipif(not TEMPLATES, reason="../shared/data/templates is absent")
def test_every_real_template_renders_a_question() -> None:
    for path in TEMPLATES:
        tools = [TOOL] if "tool_use" in path.stem else None
        rendered = ChatTemplate(path.read_text(encoding="utf-8"), bos_token="<s>", eos_token="</s>").render(
            USER, tools=tools
        )
        assert "Hi" in rendered, path.stem
