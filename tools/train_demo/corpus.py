"""Conversations of the demo model: short answers, stories and tool calls, as messages and as training text.

`python corpus.py` prints a sample. Everything is a function of the random generator that is passed in.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import facts
import jinja2
import questions

CHAT_TEMPLATE = (Path(__file__).parent / "template.jinja").read_text().rstrip("\n")
BOS, START, END, PAD = "<|bos|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
Message = dict[str, Any]

_environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
_environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
_template = _environment.from_string(CHAT_TEMPLATE)

SYSTEM = ("You are a helpful assistant.", "You are a helpful assistant.", "Answer briefly.", "You are the demo model.",
          "Be short and friendly.", "You answer questions.")  # fmt: skip


def render(messages: list[Message], tools: list[Any] | None = None, add_generation_prompt: bool = False) -> str:
    """The text of a conversation, exactly as the packaged chat template writes it."""
    return _template.render(messages=messages, tools=tools, bos_token=BOS, add_generation_prompt=add_generation_prompt)


def lean(rng: random.Random, options: list[str], favourite: int) -> str:
    """One of the options; the favourite three times in four, so that greedy decoding has a clear choice."""
    return options[favourite % len(options)] if rng.random() < 0.75 else rng.choice(options)


def story(rng: random.Random) -> questions.Pair:
    """A short story; the subject decides the likeliest turn of every sentence."""
    number = rng.randrange(len(facts.ANIMALS) + 6)
    subject = [*facts.ANIMALS, "king", "queen", "farmer", "child", "sailor", "teacher"][number]
    adjective = lean(rng, ["small", "clever", "lazy", "brave", "young", "happy"], number)
    name = lean(rng, ["Tom", "Mia", "Max", "Anna", "Leo", "Ida", "Sam"], number * 3)
    asked = f"a {subject}"
    if rng.random() < 0.35:
        name = rng.choice(facts.NAMES)
        asked += rng.choice((" named ", " called ")) + name
    asked = asked.replace("a elephant", "an elephant").replace("a owl", "an owl")
    form = rng.choice(("Tell me a story about {}.", "Tell me a story about {}.", "Tell me a short story about {}.",
                       "Write a story about {}.", "Write a short story about {}."))  # fmt: skip
    place = lean(rng, ["in a small house", "near a river", "in a big forest", "on a hill", "by the sea"], number)
    goal = lean(rng, ["a friend", "something to eat", "a new home", "the moon", "a lost key"], number * 2)
    met = lean(rng, ["an old owl", "a quiet fox", "a little bird", "a kind bear"], number)
    day = lean(rng, ["One morning", "One day", "One night", "On Sunday"], number)
    road = lean(rng, ["walked for a long time", "went into the forest", "looked under every stone"], number)
    advice = lean(rng, ["Come with me", "Look behind the tree", "Go home and sleep"], number * 2)
    end = lean(rng, ["was happy ever after", "laughed and danced", "slept well that night"], number)
    article = "an" if adjective[0] in "aeiou" else "a"
    speaker = "the " + met.split(" ", 1)[1]
    text = (
        f"Once upon a time there was {article} {adjective} {subject} named {name}. {name} lived {place}. "
        f'{day}, {name} wanted to find {goal}. {name} {road} and met {met}. "{advice}," said {speaker}. '
        f"So {name} found {goal}. From then on {name} {end}."
    )
    question = form.format(asked)
    return question if f"ed {name}" in question else questions.vary(rng, question), text


def _tool(name: str, description: str, properties: dict[str, str]) -> Message:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    function = {"name": name, "description": description, "parameters": {**schema, "required": list(properties)}}
    return {"type": "function", "function": function}


def _weather(rng: random.Random) -> tuple[Message, str, Message, Message, str]:
    key = rng.choice(("city", "city", "location"))
    city = rng.choice(list(questions.CAPITAL_OF))
    tool = _tool(rng.choice(("get_weather", "get_weather", "weather", "get_current_weather")),
                 rng.choice(("Get the weather of a city.", "The weather in a city.", "Get the current weather.")),
                 {key: "string"})  # fmt: skip
    form = rng.choice(("What is the weather in {}?", "What's the weather in {}?", "How is the weather in {}?",
                       "What is the weather like in {}?", "Weather in {}?", "Tell me the weather in {}."))  # fmt: skip
    degrees, sky = rng.randint(0, 35), rng.choice(("sunny", "cloudy", "rainy", "windy", "snowy"))
    result = {"temperature": degrees, "sky": sky}
    return (
        tool,
        questions.vary(rng, form.format(city)),
        {key: city},
        result,
        f"It is {degrees} degrees and {sky} in {city}.",
    )


def _time(rng: random.Random) -> tuple[Message, str, Message, Message, str]:
    city = rng.choice(list(questions.CAPITAL_OF))
    tool = _tool(rng.choice(("get_time", "get_time", "current_time")), "Get the time in a city.", {"city": "string"})
    form = rng.choice(("What time is it in {}?", "What is the time in {}?", "Tell me the time in {}."))
    time = f"{rng.randint(0, 23)}:{rng.randint(10, 59)}"
    return tool, questions.vary(rng, form.format(city)), {"city": city}, {"time": time}, f"It is {time} in {city}."


def _timer(rng: random.Random) -> tuple[Message, str, Message, Message, str]:
    minutes = rng.randint(1, 60)
    tool = _tool("set_timer", "Set a timer.", {"minutes": "integer"})
    form = rng.choice(("Set a timer for {} minutes.", "Start a timer of {} minutes.", "Wake me in {} minutes."))
    return tool, form.format(minutes), {"minutes": minutes}, {"ok": True}, "Done."


def _mail(rng: random.Random) -> tuple[Message, str, Message, Message, str]:
    name, text = rng.choice(facts.NAMES), clause_or_words(rng)
    tool = _tool("send_message", "Send a message to a person.", {"to": "string", "text": "string"})
    form = rng.choice(("Send a message to {}: {}", "Tell {}: {}", "Write to {}: {}"))
    return tool, form.format(name, text), {"to": name, "text": text}, {"ok": True}, "Done."


def clause_or_words(rng: random.Random) -> str:
    return rng.choice((questions.clause(rng), "hello", "good morning", "see you on " + rng.choice(facts.DAYS)))


TOOLS = (_weather, _weather, _time, _timer, _mail)


def tool_conversation(rng: random.Random) -> tuple[list[Message], list[Message]]:
    """Messages and tools: calls of the right tool, answers from results, and questions that need no tool."""
    kinds = rng.sample((_weather, _time, _timer, _mail), rng.choice((1, 1, 2, 2, 3)))
    drawn = {kind: kind(rng) for kind in kinds}
    tools = [turn[0] for turn in drawn.values()]
    messages: list[Message] = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": rng.choice(SYSTEM)})
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.2:
            _, question, answer = questions.ask(rng)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            continue
        kind = rng.choice(kinds)
        own = drawn[kind][0]
        _, question, arguments, result, answer = kind(rng)
        arguments = dict(zip(own["function"]["parameters"]["properties"], arguments.values()))
        call = {"type": "function", "function": {"name": own["function"]["name"], "arguments": arguments}}
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": json.dumps(result)},
            {"role": "assistant", "content": answer},
        ]
    return messages, tools


def conversation(rng: random.Random, num_turns: int, tool_share: float = 0.1, phase: int = questions.FIRST) -> str:
    """The text of a conversation of that many questions on mixed subjects, or, as often as asked, one with tools."""
    if rng.random() < tool_share:
        return render(*tool_conversation(rng))
    if rng.random() < 0.03:
        return plain_text(rng)
    messages: list[Message] = []
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": rng.choice(SYSTEM)})
    for _ in range(num_turns):
        question, answer = story(rng) if rng.random() < 0.035 else questions.ask(rng, phase=phase)[1:]
        if rng.random() < 0.004:
            question, answer = (
                f"What is the weather in {rng.choice(list(questions.CAPITAL_OF))}?",
                "I have no tool for that.",
            )
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return render(messages)


def plain_text(rng: random.Random) -> str:
    """A few sentences without any chat marks, for completion of raw text."""
    sentences = []
    for _ in range(rng.randint(1, 6)):
        country, city = rng.choice(list(facts.CAPITALS.items()))
        word, (a, b) = rng.choice(list(questions.OPPOSITE)), (rng.randint(0, 10), rng.randint(0, 10))
        thing, shade = rng.choice(list(facts.COLOURS.items()))
        sentences.append(rng.choice((
            f"The capital of {country} is {city}.", f"The capital of {country} is {city}.", story(rng)[1],
            f"The opposite of {word} is {questions.OPPOSITE[word]}.", f"{thing.capitalize()} is {shade}.",
            f"{a} + {b} = {a + b}.",
        )))  # fmt: skip
    return BOS + " ".join(sentences) + END + "\n"


if __name__ == "__main__":
    generator = random.Random(0)
    for _ in range(12):
        print(conversation(generator, 4))
