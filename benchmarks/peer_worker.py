"""A process that holds one model in one engine and measures when it is told to: JSON lines in, JSON lines out.

It sleeps in a read between its turns, so that the engine whose turn it is has the machine to itself.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

_SEED = 7


class Subject(Protocol):
    """An engine under measurement; `prefill` and `decode` return seconds."""

    def prefill(self, num_tokens: int) -> float:
        """Compute a prompt in an empty context."""

    def fill(self, batch: int, depth: int) -> None:
        """Bring the first `batch` sequences to `depth` computed tokens."""

    def decode(self, num_tokens: int, depth: int, batch: int) -> float:
        """Steps of one token for each of `batch` sequences, from `depth` on."""

    def logits(self, num_tokens: int) -> list[float]:
        """Of the last of `num_tokens` fixed tokens."""

    def facts(self) -> Mapping[str, Any]:
        """What is running."""

    def close(self) -> None:
        """Free everything."""


class OurSubject:
    """This runtime, through the runner of its engine."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        from runtime.engine.bench import BenchPlan, BenchSequences, loaded_facts
        from runtime.engine.config import EngineConfig
        from runtime.engine.loading import load

        length, batch = config["max_model_len"], config["max_num_seqs"]
        self._loaded = load(
            EngineConfig(
                config["model"],
                config["backend"],
                config["threads"],
                length,
                kv_format=config["kv_format"],
                max_num_seqs=batch,
                max_num_batched_tokens=max(512, batch),
            )
        )
        self._threads = config["threads"]
        self._facts = loaded_facts(self._loaded)
        self._sequences = BenchSequences(self._loaded, BenchPlan((length,), 1, (length - 1,), (batch,)))

    def prefill(self, num_tokens: int) -> float:
        """See `Subject`."""
        return self._sequences.prefill(num_tokens)

    def fill(self, batch: int, depth: int) -> None:
        """See `Subject`."""
        self._sequences.fill(batch, depth, None)

    def decode(self, num_tokens: int, depth: int, batch: int) -> float:
        """See `Subject`."""
        return self._sequences.decode(num_tokens, depth, batch)

    def logits(self, num_tokens: int) -> list[float]:
        """See `Subject`."""
        (part,) = self._sequences.parts(1, 0, num_tokens)
        part.request.prompt_token_ids = fixed_tokens(num_tokens, self._loaded.spec.vocab_size)
        row = self._sequences.runner.forward([part], [num_tokens - 1])[0]
        return [float(x) for x in row]

    def facts(self) -> Mapping[str, Any]:
        """See `Subject`."""
        return self._facts

    def ceilings(self) -> Mapping[str, float]:
        """What the machine can do now, by `measure_ceilings`."""
        from runtime.engine.ceilings import measure_ceilings

        return measure_ceilings(next(iter(self._loaded.devices.values())), self._threads)

    def close(self) -> None:
        """See `Subject`."""
        self._sequences.close()
        self._loaded.close()


class LlamaCppSubject:
    """llama.cpp as llama-cpp-python brings it, with its own defaults."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        from llama_cpp_peer import LlamaCpp

        self._batched = max(512, config["max_num_seqs"])
        self._peer = LlamaCpp(
            config["model"],
            threads=config["threads"],
            max_model_len=config["max_model_len"],
            max_num_seqs=config["max_num_seqs"],
            max_num_batched_tokens=self._batched,
        )
        vocab_size = self._peer.vocab_size
        draw = random.Random(_SEED)
        self._tokens = [
            [draw.randrange(vocab_size) for _ in range(config["max_model_len"])] for _ in range(config["max_num_seqs"])
        ]
        self._computed = [0] * config["max_num_seqs"]

    def prefill(self, num_tokens: int) -> float:
        """See `Subject`."""
        self._peer.forget(0, 0)
        self._computed[0] = 0
        started = time.perf_counter()
        self.fill(1, num_tokens)
        return time.perf_counter() - started

    def fill(self, batch: int, depth: int) -> None:
        """See `Subject`."""
        for seq in range(batch):
            self._peer.forget(seq, depth)
            self._computed[seq] = min(self._computed[seq], depth)
            while (start := self._computed[seq]) < depth:
                n = min(self._batched, depth - start)
                self._peer.forward(self._tokens[seq][start : start + n], range(start, start + n), [seq] * n, [n - 1])
                self._computed[seq] = start + n

    def decode(self, num_tokens: int, depth: int, batch: int) -> float:
        """See `Subject`."""
        self.fill(batch, depth)  # forgets what an earlier repetition has added
        seconds = 0.0
        for i in range(num_tokens):
            tokens = [self._tokens[seq][depth + i] for seq in range(batch)]
            started = time.perf_counter()
            self._peer.forward(tokens, [depth + i] * batch, range(batch), range(batch))
            seconds += time.perf_counter() - started
        self._computed[:batch] = [depth + num_tokens] * batch
        return seconds

    def logits(self, num_tokens: int) -> list[float]:
        """See `Subject`."""
        self._peer.forget(0, 0)
        self._computed[0] = 0
        tokens = fixed_tokens(num_tokens, self._peer.vocab_size)
        row = self._peer.forward(tokens, range(num_tokens), [0] * num_tokens, [num_tokens - 1])[0]
        self._peer.forget(0, 0)
        return [float(x) for x in row]

    def facts(self) -> Mapping[str, Any]:
        """See `Subject`."""
        import llama_cpp

        return {"llama_cpp_python": llama_cpp.__version__, "system": llama_cpp.llama_print_system_info().decode()}

    def close(self) -> None:
        """See `Subject`."""
        self._peer.close()


SUBJECTS: Mapping[str, Callable[[Mapping[str, Any]], Subject]] = {"runtime": OurSubject, "llama_cpp": LlamaCppSubject}


def fixed_tokens(num_tokens: int, vocab_size: int) -> list[int]:
    """Tokens that both engines get where their answers are compared."""
    draw = random.Random(11)
    return [draw.randrange(vocab_size) for _ in range(num_tokens)]


def first_token(config: Mapping[str, Any]) -> None:
    """llama.cpp from a fresh process to its first token; this runtime is started as `runtime run` instead."""
    import numpy as np

    subject = LlamaCppSubject(config)
    print(int(np.argmax(subject.logits(8))), flush=True)


def main() -> int:
    """Serve commands from stdin until it ends."""
    engine, config = sys.argv[1], json.loads(sys.argv[2])
    if config.get("first_token"):
        first_token(config)
        return 0
    started = time.perf_counter()
    subject = SUBJECTS[engine](config)
    print(json.dumps({"load_s": time.perf_counter() - started}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(subject, command.pop("do"))(**command)
        print(json.dumps(answer), flush=True)
    subject.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
