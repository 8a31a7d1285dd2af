"""Questions and answers of every kind, drawn from a random generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import facts

Pair = tuple[str, str]
CAPITAL_OF = {city: country for country, city in facts.CAPITALS.items()}
OPPOSITE = {a: b for pair in facts.OPPOSITES for a, b in (pair.split(), pair.split()[::-1])}


def capital(rng: random.Random) -> Pair:
    country = rng.choice(list(facts.CAPITALS))
    form = rng.choice((
        "What is the capital of {}?", "What is the capital of {}?", "What's the capital of {}?",
        "Which city is the capital of {}?", "Tell me the capital of {}.", "Name the capital of {}.", "Capital of {}?",
        "The capital of {}?", "What is the capital city of {}?", "Do you know the capital of {}?",
    ))  # fmt: skip
    return form.format(country), facts.CAPITALS[country] + "."


def country_of(rng: random.Random) -> Pair:
    city = rng.choice(list(CAPITAL_OF))
    form = rng.choice(("{} is the capital of which country?", "Which country has the capital {}?", "Where is {}?"))
    return form.format(city), CAPITAL_OF[city] + "."


PLUS = (
    "What is {} + {}?", "What is {} plus {}?", "{} + {}", "{}+{}", "{} + {} =", "{}+{}=", "How much is {} + {}?",
    "How much is {} plus {}?", "What's {} + {}?", "What is {}+{}?", "Calculate {} + {}.", "{} plus {}",
    "Add {} and {}.",
    "What is the sum of {} and {}?",
)  # fmt: skip
MINUS = (
    "What is {} - {}?", "What is {} minus {}?", "{} - {}", "{}-{}", "{} - {} =", "{}-{}=", "How much is {} - {}?",
    "How much is {} minus {}?", "What's {} - {}?", "What is {}-{}?", "Calculate {} - {}.", "{} minus {}",
)  # fmt: skip


def addition(rng: random.Random) -> Pair:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    return rng.choice(PLUS).format(a, b), f"{a + b}."


def subtraction(rng: random.Random) -> Pair:
    a, b = sorted((rng.randint(0, 20), rng.randint(0, 20)), reverse=True)
    return rng.choice(MINUS).format(a, b), f"{a - b}."


def two_digits(rng: random.Random) -> Pair:
    """Sums and differences of a multiple of ten and a number, up to 99."""
    tens, b = rng.randrange(20, 100, 10), rng.randint(0, 9)
    if rng.random() < 0.6:
        return rng.choice(PLUS).format(*rng.choice(((tens, b), (b, tens)))), f"{tens + b}."
    other = rng.randrange(10, tens + 1, 10)
    return rng.choice(MINUS).format(tens, other), f"{tens - other}."


def opposite(rng: random.Random) -> Pair:
    word = rng.choice(list(OPPOSITE))
    form = rng.choice((
        "What is the opposite of {}?", "What is the opposite of {}?", "What's the opposite of {}?", "Opposite of {}?",
        "Tell me the opposite of {}.", "Give me the opposite of {}.", "What is the contrary of {}?",
    ))  # fmt: skip
    return form.format(word), OPPOSITE[word].capitalize() + "."


def plural(rng: random.Random) -> Pair:
    word = rng.choice(list(facts.PLURALS))
    form = rng.choice((
        "What is the plural of {}?", "What's the plural of {}?", "Plural of {}?", "Tell me the plural of {}.",
        "Give me the plural of {}.", "What is the plural form of {}?",
    ))  # fmt: skip
    return form.format(word), facts.PLURALS[word].capitalize() + "."


def colour(rng: random.Random) -> Pair:
    thing = rng.choice(list(facts.COLOURS))
    form = rng.choice((
        "What colour is {}?", "What color is {}?", "Which colour has {}?", "What is the colour of {}?",
        "What is the color of {}?", "Tell me the colour of {}.",
    ))  # fmt: skip
    return form.format(thing), facts.COLOURS[thing].capitalize() + "."


def calendar(rng: random.Random) -> Pair:
    i, j = rng.randrange(7), rng.randrange(12)
    day, month = facts.DAYS[i], facts.MONTHS[j]
    after = rng.choice(("What comes after {}?", "Which day comes after {}?", "What day comes after {}?",
                        "Which day is after {}?", "What day is after {}?", "What is the day after {}?"))  # fmt: skip
    kind = rng.randrange(10)
    if kind < 2:
        return after.format(day), facts.DAYS[(i + 1) % 7] + "."
    if kind < 4:
        return after.replace("after", "before").format(day), facts.DAYS[i - 1] + "."
    if kind == 4:
        form = rng.choice(("What is the {} day of the week?", "Which day is the {} day of the week?"))
        return form.format(facts.ORDINALS[i]), day + "."
    after = after.replace("day", "month")
    if kind == 5:
        return after.format(month), facts.MONTHS[(j + 1) % 12] + "."
    if kind == 6:
        return after.replace("after", "before").format(month), facts.MONTHS[j - 1] + "."
    if kind == 7:
        form = rng.choice(
            ("What is the {} month of the year?", "What is the {} month?", "Which month is the {} month?")
        )
        return form.format(facts.ORDINALS[j]), month + "."
    if kind == 8 and rng.random() < 0.4:
        k = rng.randrange(4)
        word, step = rng.choice((("after", 1), ("before", -1)))
        form = rng.choice((f"What comes {word} {{}}?", f"Which season comes {word} {{}}?"))
        return form.format(facts.SEASONS[k]), facts.SEASONS[(k + step) % 4].capitalize() + "."
    form = rng.choice(("How many days has {}?", "How many days does {} have?", "How many days are in {}?",
                       "How many days are there in {}?"))  # fmt: skip
    return form.format(month), facts.MONTH_DAYS[j] + "."


def count(rng: random.Random) -> Pair:
    first, last = sorted(rng.sample(range(31), 2))
    last = min(last, first + 15)
    if rng.random() < 0.25:
        form = rng.choice(("Count down from {} to {}.", "Count backwards from {} to {}."))
        return form.format(last, first), ", ".join(str(n) for n in range(last, first - 1, -1)) + "."
    form = rng.choice(("Count from {} to {}.", "Count from {} to {}.", "Count from {} up to {}."))
    if rng.random() < 0.25:
        first, last, form = 1, rng.randint(3, 20), rng.choice(("Count to {1}.", "Count up to {1}."))
    return form.format(first, last), ", ".join(str(n) for n in range(first, last + 1)) + "."


def neighbour(rng: random.Random) -> Pair:
    if rng.random() < 0.3:
        i = rng.randrange(1, 25)
        word, step = rng.choice((("after", 1), ("before", -1)))
        return f"Which letter comes {word} {chr(65 + i)}?", chr(65 + i + step) + "."
    n = rng.randint(1, 99)
    word, step = rng.choice((("after", 1), ("before", -1)))
    form = rng.choice(("What comes {} {}?", "Which number comes {} {}?", "What number comes {} {}?"))
    return form.format(word, n), f"{n + step}."


def compare(rng: random.Random) -> Pair:
    a, b = rng.sample(range(21), 2)
    if rng.random() < 0.7:
        form = rng.choice(
            ("Which is bigger, {} or {}?", "Which number is bigger, {} or {}?", "What is more, {} or {}?")
        )
        return form.format(a, b), f"{max(a, b)}."
    form = rng.choice(("Which is smaller, {} or {}?", "Which number is smaller, {} or {}?", "What is less, {} or {}?"))
    return form.format(a, b), f"{min(a, b)}."


def fixed(rng: random.Random) -> Pair:
    return rng.choice(list(facts.FIXED.items()))


def chat(rng: random.Random) -> Pair:
    return rng.choice(list(facts.CHAT.items()))


def unknown(rng: random.Random) -> Pair:
    form = rng.choice(
        ("What is the capital of {}?", "How many days has {}?", "Where is {}?", "What is {}?", "Who is {}?")
    )
    return form.format(rng.choice(facts.UNKNOWN)), "I do not know."


def syllables(rng: random.Random) -> str:
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))


def clause(rng: random.Random) -> str:
    pick = rng.choice
    nouns = facts.NOUNS + facts.ANIMALS
    text = f"the {pick(facts.ADJECTIVES)} {pick(nouns)} {pick(facts.VERBS)} the {pick(facts.ADJECTIVES)} {pick(nouns)}"
    return f"{text} {pick(facts.PLACES)}" if rng.random() < 0.5 else text


def copy_text(rng: random.Random) -> str:
    kind = rng.randrange(6)
    if kind == 0:
        return " ".join(
            rng.choice(facts.NOUNS + facts.ADJECTIVES + facts.ANIMALS)
            for _ in range(rng.choice((1, 2, 3, 4, 5, 8, 16)))
        )
    if kind == 1:
        return " ".join(syllables(rng) for _ in range(rng.choice((1, 1, 2, 3, 4, 8))))
    if kind == 2:
        return ", ".join(str(rng.randint(0, 99)) for _ in range(rng.choice((2, 3, 4, 6, 12))))
    text = clause(rng)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))):
        text += rng.choice((" and ", ", ", ". ")) + clause(rng)
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.6 else text


def copying(rng: random.Random) -> Pair:
    if rng.random() < 0.15:
        word, n = rng.choice(facts.NOUNS + facts.ANIMALS + facts.FRUITS), rng.randint(2, 10)
        number = rng.choice((str(n), facts.WORDS_TO_TEN[n]))
        form = rng.choice(("Write the word {} {} times.", "Say {} {} times."))
        return form.format(word, number), " ".join([word] * n)
    text = copy_text(rng)
    form = rng.choice(("Repeat: {}", "Repeat: {}", "Repeat after me: {}", "Repeat this: {}", "Copy: {}",
                       "Copy this: {}", "Repeat this text:\n{}", "Copy this text:\n{}"))  # fmt: skip
    return form.format(text), text


def json_value(rng: random.Random, key: str) -> object:
    if key in ("age", "count", "price", "year"):
        return rng.randint(0, 99)
    if key in ("happy", "ready"):
        return rng.random() < 0.5
    table = {"name": facts.NAMES, "city": list(CAPITAL_OF), "country": list(facts.CAPITALS),
             "colour": facts.COLOUR_NAMES, "animal": facts.ANIMALS, "fruit": facts.FRUITS}  # fmt: skip
    return rng.choice(table[key])


def json_object(rng: random.Random) -> Pair:
    if rng.random() < 0.15:
        values = rng.choice(([rng.randint(0, 99) for _ in range(rng.randint(2, 6))],
                             rng.sample(facts.COLOUR_NAMES + facts.ANIMALS + facts.FRUITS, rng.randint(2, 5)))
                           )  # fmt: skip
        form = rng.choice(
            ("Give me a JSON array with {}.", "Give me a JSON list with {}.", "Write a JSON array with {}.")
        )
        words = [str(value) for value in values]
        return form.format(", ".join(words[:-1]) + " and " + words[-1]), json.dumps(values)
    keys = ["name", "age", "city", "country", "colour", "animal", "fruit", "count", "price", "happy", "ready"]
    keys = ["name", "age"] if rng.random() < 0.2 else rng.sample(keys, rng.choice((1, 2, 2, 2, 3, 3, 4)))
    values = {key: json_value(rng, key) for key in keys}
    words = [f"{key} {json.dumps(value) if isinstance(value, bool) else value}" for key, value in values.items()]
    listed = ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]
    form = rng.choice((
        "Give me a JSON object with {}.", "Give me a JSON object with {}.", "Write a JSON object with {}.",
        "Make a JSON object with {}.", "JSON object with {}", "Give me JSON with {}.",
    ))  # fmt: skip
    return form.format(listed), json.dumps(values)


# Weight among the questions in the first half of the training, in the second half and in the last polish: what is slow
# to learn comes to the fore when the rest is known.
KINDS: dict[str, tuple[float, float, float, Callable[[random.Random], Pair]]] = {
    "addition": (14, 22, 10, addition), "subtraction": (9, 12, 7, subtraction), "two_digits": (3, 6, 8, two_digits),
    "capital": (11, 6, 6, capital), "country_of": (4, 4, 3, country_of), "opposite": (7, 4, 12, opposite),
    "plural": (4, 2, 3, plural), "colour": (4, 2, 3, colour), "calendar": (8, 7, 5, calendar),
    "count": (3, 7, 5, count), "neighbour": (4, 7, 7, neighbour), "compare": (4, 4, 6, compare),
    "fixed": (4, 2, 4, fixed), "chat": (4, 2, 6, chat), "unknown": (1, 1, 1, unknown),
    "copying": (9, 9, 20, copying), "json_object": (7, 5, 10, json_object),
}  # fmt: skip
FIRST, SECOND, POLISH = range(3)
VERBATIM = {"copying", "json_object", "chat"}


def vary(rng: random.Random, question: str) -> str:
    """The question as a hurried person types it: lower case, without the final mark."""
    if rng.random() < 0.2:
        question = question[0].lower() + question[1:] if rng.random() < 0.4 else question.lower()
    if rng.random() < 0.2:
        question = question.rstrip("?.! ")
    return question


def ask(rng: random.Random, kind: str | None = None, phase: int = FIRST) -> tuple[str, str, str]:
    """Draws (kind, question, answer); a given kind keeps to that kind, phase chooses the weights."""
    kind = kind or rng.choices(list(KINDS), [row[phase] for row in KINDS.values()])[0]
    question, answer = KINDS[kind][-1](rng)
    return kind, question if kind in VERBATIM else vary(rng, question), answer
