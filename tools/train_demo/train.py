"""Trains the demo model on one CPU core and writes it as GGUF.

python tools/train_demo/train.py --steps 3100 --work build/demo     # resumes from build/demo/checkpoint.pt
python tools/train_demo/evaluate.py core/runtime/models/demo/demo-q8_0.gguf
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import corpus
import export
import numpy as np
import questions
import tokenizer as vocabulary
import torch
import torch.nn.functional as F  # noqa: N812
from model import Model, Sizes
from tokenizers import Tokenizer
from torch import Tensor

NUM_TOKENS_PER_STEP = 2048
# (share of the steps, tokens in a row, share of conversations with tools): short rows are cheap, long rows teach
# positions up to the context length.
ROW_LENGTHS = ((0.50, 128, 0.0), (0.35, 256, 0.35), (0.10, 512, 0.3), (0.05, 1024, 0.2))
NUM_WARMUP_STEPS = 40
SECOND_STEP, POLISH_STEP = 1250, 2700
POLISH_RATE = 0.25
DECAY_SHARE = 0.4
EMA = 0.99


def draw_batch(rng: random.Random, tokenizer: Tokenizer, step: int) -> tuple[Tensor, Tensor]:
    """token_ids [rows, length + 1] and the mask of the tokens to be predicted, same shape."""
    echoes, phase = echo_share(step), (step >= SECOND_STEP) + (step >= POLISH_STEP)
    _, length, tool_share = rng.choices(ROW_LENGTHS, [share for share, _, _ in ROW_LENGTHS])[0]
    if echoes > 0.8:
        length, tool_share = 128, 0.0
    rows = []
    for _ in range(NUM_TOKENS_PER_STEP // length):
        row: list[int] = []
        while len(row) <= length:
            if rng.random() < echoes:
                row += echo(rng, tokenizer)
                continue
            num_turns = max(1, int(rng.random() ** 1.5 * length / 16))
            row += tokenizer.encode(
                corpus.conversation(rng, num_turns, tool_share * (1 + 0.6 * (phase == questions.POLISH)), phase)
            ).ids
        rows.append(row[: length + 1])
    return torch.tensor(rows), torch.from_numpy(np.array([answer_mask(row, tokenizer) for row in rows]))


def echo(rng: random.Random, tokenizer: Tokenizer) -> list[int]:
    """A request to repeat a jumble of common tokens, and its answer: the shortest way to heads that copy."""
    common = tokenizer.encode(corpus.conversation(rng, 6)).ids
    common = [token for token in common if token >= len(vocabulary.SPECIAL_TOKENS)]
    noise = rng.choices(common, k=rng.choice((1, 1, 1, 2, 2, 3, 4, 6, 8, 16)))
    before = f"{corpus.BOS}{corpus.START}user\nRepeat this text:\n"
    between, after = f"{corpus.END}\n{corpus.START}assistant\n", f"{corpus.END}\n"
    parts = [tokenizer.encode(text).ids for text in (before, between, after)]
    return [*parts[0], *noise, *parts[1], *noise, *parts[2]]


def echo_share(step: int) -> float:
    """Share of echoes among the conversations.

    Copying comes late when it is learned beside the facts, so echoes are most of the text at first; facts crowd the
    young skill out again, so there is a second spell of them, long enough for it to settle.
    """
    if step < 500:
        return max(0.06, 0.8 * (1 - step / 350))
    return 0.85 if step < 750 else 0.15


def answer_mask(row: list[int], tokenizer: Tokenizer) -> list[bool]:
    """True for what an assistant says, up to and with its end mark, and for text outside of any message."""
    bos, start, end = (tokenizer.token_to_id(token) for token in (corpus.BOS, corpus.START, corpus.END))
    assistant = tokenizer.encode("assistant").ids[0]
    mask, wanted = [], True
    for i, token in enumerate(row):
        if token in (bos, start):
            spoken = token == start and i + 1 < len(row) and row[i + 1] == assistant
            wanted, skip = spoken or token == bos, 3 if token == start else 1
            header = i + skip
        mask.append(wanted and i >= header)
        if token == end:
            wanted = False
    return mask


def accuracy(model: Model, tokenizer: Tokenizer, num_questions: int, seed: int) -> dict[str, float]:
    """Share of right answers by kind: greedy decoding is right when every token of the answer is the likeliest."""
    rng, scores = random.Random(seed), {}
    for kind in questions.KINDS:
        right = 0
        for _ in range(num_questions):
            _, question, answer = questions.ask(rng, kind)
            right += answers_exactly(model, tokenizer, [{"role": "user", "content": question}], answer)
        scores[kind] = right / num_questions
    return scores


@torch.no_grad()
def answers_exactly(model: Model, tokenizer: Tokenizer, messages: list[corpus.Message], answer: str) -> bool:
    prompt = tokenizer.encode(corpus.render(messages, add_generation_prompt=True)).ids
    target = tokenizer.encode(answer + corpus.END).ids
    wanted = torch.zeros(1, len(prompt) + len(target) - 1, dtype=torch.bool)
    wanted[0, len(prompt) - 1 :] = True
    logits = model(torch.tensor([(prompt + target)[:-1]]), wanted)
    return bool((logits.argmax(-1) == torch.tensor(target)).all())


def rate(step: int, num_steps: int) -> float:
    """Warm-up, plateau, a straight line to zero; then the polish, from a quarter of the rate to zero again."""
    if step >= POLISH_STEP:
        since = step - POLISH_STEP
        return POLISH_RATE * min((since + 1) / NUM_WARMUP_STEPS, (num_steps - step) / (num_steps - POLISH_STEP))
    return min(1.0, (step + 1) / NUM_WARMUP_STEPS, (POLISH_STEP - step) / (POLISH_STEP * DECAY_SHARE))


def train(work: Path, output: Path, num_steps: int, num_threads: int, seed: int) -> None:
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer.json").exists():
        vocabulary.train(seed).save(str(work / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    model, average = Model(Sizes()), Model(Sizes())
    matrices = [weight for weight in model.layers.parameters() if weight.dim() == 2]
    others = [weight for weight in model.layers.parameters() if weight.dim() != 2]
    others += [model.embed_tokens.weight, model.norm.weight]
    optimisers = [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=3e-3, weight_decay=0.0)]
    peaks = [0.02, 3e-3]
    first_step, spent_s = 0, 0.0
    if (work / "checkpoint.pt").exists():
        state = torch.load(work / "checkpoint.pt")
        first_step, spent_s = state["step"], state["spent_s"]
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimiser, saved in zip(optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)
    else:
        average.load_state_dict(model.state_dict())
    started, losses = time.monotonic(), []
    for step in range(first_step, num_steps):
        rows, mask = draw_batch(random.Random(f"{seed} {step}"), tokenizer, step)
        for optimiser, peak in zip(optimisers, peaks):
            optimiser.param_groups[0]["lr"] = peak * rate(step, num_steps)
        loss = F.cross_entropy(model(rows[:, :-1], mask[:, 1:]), rows[:, 1:][mask[:, 1:]])
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters()):
                slow.lerp_(fast, 1 - min(EMA, step / (step + 10)))
        losses.append(loss.item())
        done = step + 1
        if done % 25 == 0:
            elapsed = spent_s + time.monotonic() - started
            print(f"step {done} loss {sum(losses) / len(losses):.4f} elapsed_s {elapsed:.0f}", flush=True)
            losses.clear()
        if done % 250 == 0 or done == num_steps:
            elapsed = spent_s + time.monotonic() - started
            state = {"step": done, "spent_s": elapsed, "model": model.state_dict(), "average": average.state_dict(),
                     "optimisers": [optimiser.state_dict() for optimiser in optimisers]}  # fmt: skip
            torch.save(state, work / "checkpoint.pt")
            scores = accuracy(average, tokenizer, 25, 1)
            print(" ".join(f"{kind}={score:.2f}" for kind, score in scores.items()), flush=True)
    export.write(average, tokenizer, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--steps", type=int, default=3100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=root / "build/demo")
    parser.add_argument("--output", type=Path, default=root / "core/runtime/models/demo/demo-q8_0.gguf")
    arguments = parser.parse_args()
    train(arguments.work, arguments.output, arguments.steps, arguments.threads, arguments.seed)


if __name__ == "__main__":
    main()
