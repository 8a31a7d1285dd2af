"""How far an engine's arithmetic moves the answers: KL divergence from the references on the same quantised weights."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from models import MIXTURES, SHAPES, write_model
from numpy.typing import NDArray
from random_blocks import FORMATS

from runtime.backend import ReferenceDevice
from runtime.dtypes import TensorSpec
from runtime.engine.config import EngineConfig
from runtime.engine.loading import load
from runtime.executor import Executor, make_plan
from runtime.formats import open_model
from runtime.models import build_graph, describe_model, load_weight_bytes, weight_source
from runtime.models.demo import demo_model_path

Logits = NDArray[np.float64]
NUM_TOKENS = 64
"""Of each prompt."""
_BLOCK_SIZE = 16


def reference_logits(path: Path, token_ids: Sequence[int]) -> Logits:
    """By the references of all operations on exactly decoded weights; intermediates and KV are f32."""
    n = len(token_ids)
    with open_model(path) as model:
        spec = describe_model(model.kind, model.metadata, model.tensors)
        limits = {"max_num_tokens": n, "max_num_seqs": 1, "max_model_len": n, "max_num_logits": n}
        graph = build_graph(spec, **limits, block_size=_BLOCK_SIZE, kv_format="f32")
        num_blocks = -(-n // _BLOCK_SIZE)
        device = ReferenceDevice()
        sizes = {"B": num_blocks}
        recipes = weight_source(spec)

        def weight(name: str) -> tuple[TensorSpec, memoryview]:
            return recipes[name].spec, load_weight_bytes(recipes[name], model.data)

        executor = Executor(
            make_plan(graph, {"host": device.manifest}, state_dims=sizes), {"host": device}, weight, sizes
        )
        inputs = {
            "token_ids": np.array(token_ids, np.int32),
            "positions": np.arange(n, dtype=np.int32),
            "query_start_loc": np.array([0, n], np.int32),
            "seq_lens": np.array([n], np.int32),
            "block_table": np.arange(num_blocks, dtype=np.int32)[None],
            "slot_mapping": np.arange(n, dtype=np.int32),
            "logits_rows": np.arange(n, dtype=np.int32),
        }
        logits = executor.run(inputs, {"T": n, "S": 1, "Q": 2, "P": num_blocks, "R": n})["logits"]
        executor.close()
        device.close()
    return logits.astype(np.float64)


def engine_logits(
    path: Path, token_ids: Sequence[int], backend: str, threads: int, kv_format: str | None = None
) -> Logits:
    """By the engine on a backend, in one step."""
    n = len(token_ids)
    loaded = load(
        EngineConfig(path, backend, threads, n, kv_format=kv_format, max_num_seqs=n, max_num_batched_tokens=n)
    )
    try:
        return loaded.engine.logits(token_ids).astype(np.float64)
    finally:
        loaded.close()


def llama_cpp_logits(path: Path, token_ids: Sequence[int], threads: int) -> Logits:
    """By llama.cpp with its own defaults, in one step."""
    from llama_cpp_peer import LlamaCpp

    n = len(token_ids)
    with LlamaCpp(path, threads=threads, max_model_len=n) as peer:
        return peer.forward(token_ids, range(n), [0] * n, range(n)).astype(np.float64)


def divergence(expected: Sequence[Logits], found: Sequence[Logits]) -> dict[str, float]:
    """Of the distributions after every token of every prompt: KL in nats and the standard error of its mean over the
    prompts, difference of logits, share of equal first choices."""
    means = np.array([kl_divergence(e, f).mean() for e, f in zip(expected, found, strict=True)])
    expected, found = np.concatenate(expected), np.concatenate(found)
    kl = kl_divergence(expected, found)
    return {
        "mean_kl": float(kl.mean()),
        "mean_kl_error": float(means.std(ddof=1) / np.sqrt(means.size)) if means.size > 1 else float("nan"),
        "max_kl": float(kl.max()),
        "rms_difference": float(np.sqrt(np.mean((expected - found) ** 2)) / expected.std()),
        "same_choice": float(np.mean(expected.argmax(-1) == found.argmax(-1))),
    }


def kl_divergence(expected: Logits, found: Logits) -> NDArray[np.float64]:
    """Of each row, in nats."""
    log_p, log_q = _log_softmax(expected), _log_softmax(found)
    kl: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    return kl


def _log_softmax(logits: Logits) -> Logits:
    shifted = logits - logits.max(-1, keepdims=True)
    result: Logits = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def files(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of everything that is compared; models with random weights are written when they are wanted."""
    for path in args.models:
        yield path.name, path
    if args.demo:
        yield "demo", demo_model_path()
    for fmt in args.format.split(",") if args.format else ():
        path = folder / "model.gguf"
        write_model(path, SHAPES[args.shape], fmt)
        yield f"{args.shape} {fmt}", path


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, metavar="FILE", help="GGUF files")
    parser.add_argument("--demo", action="store_true", help="the packaged demo model")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-small", help="of models with random weights")
    parser.add_argument("--format", default="", metavar="F,..", help=f"of {', '.join([*FORMATS, *MIXTURES])}")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--kv-format", help="of this runtime (the backend's own choice)")
    parser.add_argument("--prompts", type=int, default=1, metavar="N", help=f"of {NUM_TOKENS} random tokens each (1)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", action="store_true", help="llama.cpp too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    engines: dict[str, Callable[[Path, Sequence[int]], Logits]] = {
        "runtime": lambda path, ids: engine_logits(path, ids, args.backend, args.threads, args.kv_format)
    }
    if args.peer:
        engines["llama.cpp"] = lambda path, ids: llama_cpp_logits(path, ids, args.threads)
    results: list[dict[str, Any]] = []
    print(f"{'':28}{'engine':12}{'mean KL':>10}{'+-':>9}{'max KL':>10}{'rms':>10}{'same choice':>13}")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files(args, Path(folder)):
            with open_model(path) as model:
                vocab_size = describe_model(model.kind, model.metadata, model.tensors).vocab_size
            draw = np.random.default_rng(5)
            prompts = [draw.integers(0, vocab_size, NUM_TOKENS).tolist() for _ in range(args.prompts)]
            expected = [reference_logits(path, prompt) for prompt in prompts]
            for engine, logits in engines.items():
                found = divergence(expected, [logits(path, prompt) for prompt in prompts])
                results.append({"model": name, "engine": engine, **found})
                print(
                    f"{name:28}{engine:12}{found['mean_kl']:10.2e}{found['mean_kl_error']:9.1e}"
                    f"{found['max_kl']:10.2e}"
                    f"{found['rms_difference']:10.2e}{found['same_choice']:13.3f}",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
