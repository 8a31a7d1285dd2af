"""Scores a demo GGUF by kind of question, and compares it with transformers.

FILE=core/runtime/models/demo/demo-q8_0.gguf
python tools/train_demo/evaluate.py $FILE                                                  # scores by kind
python tools/train_demo/evaluate.py $FILE --oracle                                         # against transformers
python tools/train_demo/evaluate.py $FILE --questions tests/e2e/data/demo_questions.json   # writes questions of tests
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpus
import facts
import questions
import torch
from reader import File

Pair = tuple[str, str]
Messages = list[corpus.Message]
MIN_LEAD = 1.0  # logits; a smaller lead of an answer's token over the next best could flip with other arithmetic
MIN_STORY_LEAD = 0.5  # stories have many ways to go on


def prompt_of(messages: Messages, tools: list[Any] | None = None) -> str:
    return corpus.render(messages, tools, add_generation_prompt=True)


def pair_of(question: str, answer: str) -> Pair:
    return prompt_of([{"role": "user", "content": question}]), answer + corpus.END


def turns(messages: Messages, tools: list[Any] | None = None) -> Iterator[Pair]:
    """(prompt, answer) of every assistant message of a conversation."""
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt, whole = prompt_of(messages[:i], tools), corpus.render(messages[: i + 1], tools)
            yield prompt, whole.removeprefix(prompt).rstrip("\n")


def every_fact() -> dict[str, list[Pair]]:
    """All facts in their plain phrasing, and as a hurried person types them."""
    numbers = range(21)
    sums = [(f"What is {a} + {b}?", f"{a}+{b}", f"{a + b}.") for a, b in itertools.product(numbers, numbers)]
    differences = [(f"What is {a} - {b}?", f"{a}-{b}", f"{a - b}.") for a in numbers for b in range(a + 1)]
    capitals = [
        (f"What is the capital of {c}?", f"capital of {c}".lower(), f"{city}.") for c, city in facts.CAPITALS.items()
    ]
    words = questions.OPPOSITE.items()
    opposites = [(f"What is the opposite of {a}?", f"opposite of {a}", f"{b.capitalize()}.") for a, b in words]
    plurals = [
        (f"What is the plural of {a}?", f"plural of {a}", f"{b.capitalize()}.") for a, b in facts.PLURALS.items()
    ]
    colours = [(f"What colour is {a}?", f"what color is {a}", f"{b.capitalize()}.") for a, b in facts.COLOURS.items()]
    days = [(f"What comes after {day}?", f"what day comes after {day}".lower(), f"{facts.DAYS[(i + 1) % 7]}.")
            for i, day in enumerate(facts.DAYS)]  # fmt: skip
    months = [(f"How many days has {month}?", f"how many days has {month}".lower(), f"{n}.")
              for month, n in zip(facts.MONTHS, facts.MONTH_DAYS)]  # fmt: skip
    tables = {"additions 0-20": sums, "subtractions 0-20": differences, "capitals": capitals, "opposites": opposites,
              "plurals": plurals, "colours": colours, "days": days, "month lengths": months}  # fmt: skip
    return {name: [pair_of(q, row[-1]) for row in rows for q in row[:-1]] for name, rows in tables.items()}


def drawn(num_questions: int, rng: random.Random) -> dict[str, list[Pair]]:
    """Questions of every kind in all phrasings, then chats, long chats and tool calls."""
    sets = {kind: [pair_of(*questions.ask(rng, kind)[1:]) for _ in range(num_questions)] for kind in questions.KINDS}
    chats, long_chats, calls = [], [], []
    for number in range(num_questions):
        history = [questions.ask(rng)[1:] for _ in range(rng.randint(2, 5) if number % 4 else 36)]
        messages = [
            {"role": role, "content": text} for pair in history for role, text in zip(("user", "assistant"), pair)
        ]
        if number % 4:
            chats += [list(turns(messages))[-1]]
        else:
            long_chats += [list(turns(messages))[-1]]
        calls += list(turns(*corpus.tool_conversation(rng)))[:4]
    return sets | {"chats of 2-5 turns": chats, "chats of 36 turns": long_chats, "tool conversations": calls}


def score(file: File, sets: dict[str, list[Pair]]) -> None:
    for name, pairs in sets.items():
        right = file.follows(pairs)
        missed = [pair for pair, fine in zip(pairs, right) if not fine]
        print(f"{name:20} {sum(right):5} of {len(pairs):5}  {100 * sum(right) / len(pairs):6.2f} %", flush=True)
        for prompt, answer in missed[:3]:
            said = file.generate(prompt, 40)[0] if len(prompt) < 1500 else "..."
            print(f"    {prompt[-70:-32]!r} wanted {answer!r} said {said!r}")


def candidates(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Questions for the tests: every kind, chats with a history, stories and tool calls."""
    plain = every_fact()
    for pairs in plain.values():
        for prompt, answer in rng.sample(pairs, 6):
            yield {"kind": "fact", "question": prompt.split("user\n")[1].split(corpus.END)[0], "answer": answer}
    for kind in questions.KINDS:
        for _ in range(6 if kind in ("copying", "json_object") else 3):
            _, question, answer = questions.ask(rng, kind)
            yield {"kind": kind, "question": question, "answer": answer + corpus.END}
    for animal in (*facts.ANIMALS, "king", "queen", "farmer", "cat named Kate", "dog named Paul", "fox named Ida"):
        yield {"kind": "story", "question": f"Tell me a story about {'an' if animal[0] in 'eo' else 'a'} {animal}."}
    for _ in range(8):
        messages, tools = corpus.tool_conversation(rng)
        first = next(i for i, message in enumerate(messages) if message["role"] == "user")
        row = {"kind": "tool_call", "history": messages[:first], "tools": tools, "question": messages[first]["content"]}
        yield row | {"answer": next(turns(messages, tools))[1]}
    for _ in range(8):
        history = [questions.ask(rng)[1:] for _ in range(3)]
        messages = [{"role": r, "content": text} for pair in history for r, text in zip(("user", "assistant"), pair)]
        _, question, answer = questions.ask(rng)
        yield {"kind": "chat", "history": messages, "question": question, "answer": answer + corpus.END}


def write_questions(file: File, path: Path) -> None:
    """Writes the candidates with the greedy answers; those with a narrow lead or a wrong fact are left out."""
    rows, dropped = [], 0
    for row in candidates(random.Random(7)):
        messages = [*row.get("history", []), {"role": "user", "content": row["question"]}]
        said, lead = file.generate(prompt_of(messages, row.get("tools")))
        wrong = "answer" in row and row["answer"] != said + corpus.END
        if wrong or lead < (MIN_STORY_LEAD if row["kind"] == "story" else MIN_LEAD):
            print(f"left out, lead {lead:.2f}: {row['question']!r} said {said!r}")
            dropped += 1
            continue
        rows.append(row | {"answer": said})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
    print(f"{len(rows)} questions written, {dropped} left out")


def compare(file: File, path: Path) -> None:
    """Tokens, logits and greedy answers against transformers reading the same file."""
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    rng, worst, same = random.Random(11), 0.0, 0
    texts = [corpus.conversation(rng, 30)[:3000] for _ in range(6)]
    for text in texts:
        token_ids = torch.tensor([file.tokenizer.encode(text).ids[:1024]])
        with torch.no_grad():
            worst = max(worst, float((theirs(token_ids).logits - file.logits(token_ids)).abs().max()))
    for _ in range(40):
        prompt = prompt_of([{"role": "user", "content": questions.ask(rng)[1]}])
        ids = torch.tensor([file.tokenizer.encode(prompt).ids])
        said = theirs.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=file.eos, pad_token_id=file.eos)
        same += file.tokenizer.decode(said[0, ids.shape[1] :].tolist()) == file.generate(prompt, 64)[0]
    print(f"transformers: largest logit difference {worst:.2e}, same greedy answers {same} of 40")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--drawn", type=int, default=200, help="questions drawn per kind")
    parser.add_argument("--oracle", action="store_true", help="compare with transformers, nothing else")
    parser.add_argument("--questions", type=Path, help="write the questions of the tests, nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = File(arguments.model)
    if arguments.oracle:
        compare(file, arguments.model)
    elif arguments.questions:
        write_questions(file, arguments.questions)
    else:
        score(file, every_fact() | drawn(arguments.drawn, random.Random(99)))


if __name__ == "__main__":
    main()
