"""Options that several verbs share."""

from __future__ import annotations

import argparse
from typing import Any

DEMO = "demo"


def add_model(parser: argparse.ArgumentParser, *, optional: bool = True) -> None:
    """The positional MODEL."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?" if optional else None,
        default=DEMO,
        help="GGUF file, .safetensors file or Hugging Face directory; `demo` is the packaged model"
        + (" (demo)" if optional else ""),
    )


def model_path(text: str | None) -> str | None:
    """What a person wrote as MODEL, as the engine takes it: None is the packaged demo model."""
    return None if text in (None, DEMO) else text


def add_probe_timeout(parser: argparse.ArgumentParser) -> None:
    """How long a backend may take to find its devices."""
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="for the probe of a backend, in seconds (10, or what the backend asks for)",
    )


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Options that decide where a model runs and how much memory it may take."""
    group = parser.add_argument_group("placement")
    group.add_argument("--backend", default="auto", metavar="NAME", help="auto, a backend, or backend:device (auto)")
    group.add_argument(
        "--fallback",
        default="host",
        choices=("forbid", "decompose", "host"),
        help="what may happen to operations that the device lacks (host)",
    )
    group.add_argument("--place", metavar="RULES", help='devices by node name: "layers[0:8]=cuda,layers[8:]=cpu"')
    group.add_argument("-t", "--threads", type=int, metavar="N", help="host threads (as many as it may use)")
    group.add_argument(
        "-c",
        "--ctx",
        "--max-model-len",
        dest="ctx",
        type=_context,
        metavar="N",
        help="context in tokens; auto fits it to model and memory (auto)",
    )
    group.add_argument("--kv-format", metavar="F", help="format of the KV cache, e.g. f32, f16, bf16")
    group.add_argument(
        "--cpu-isa", metavar="ISA", help="instruction set of the processor's kernels: --device-option isa=ISA"
    )
    group.add_argument(
        "--device-option",
        action="append",
        type=_setting,
        default=[],
        metavar="NAME=VALUE",
        help="a setting that the chosen backend documents; may be repeated",
    )


def add_weight_cache(parser: argparse.ArgumentParser) -> None:
    """Where a verb that loads a model keeps its packed weights."""
    parser.add_argument(
        "--weight-cache", metavar="DIR", help="keep packed weights in this folder, which makes the next start a map"
    )


def placement(args: argparse.Namespace) -> dict[str, Any]:
    """The parsed placement options as arguments of `LLM` and `EngineConfig`."""
    return {
        "backend": args.backend,
        "fallback": args.fallback,
        "place": args.place,
        "threads": args.threads,
        "max_model_len": args.ctx,
        "kv_format": args.kv_format,
        "device_options": dict(args.device_option) | ({"isa": args.cpu_isa} if args.cpu_isa else {}),
    }


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options of `SamplingParams`; what is not given is the model's own recommendation."""
    group = parser.add_argument_group("sampling (defaults: what the model's makers recommend)")
    add = group.add_argument
    add("--temp", "--temperature", dest="temperature", type=float, metavar="X", help="0 takes the most probable token")
    add("--top-k", type=int, metavar="K", help="keep the K most probable tokens; 0 keeps all")
    add("--top-p", type=float, metavar="P", help="keep the most probable tokens up to this mass")
    add("--min-p", type=float, metavar="P", help="keep tokens at least P times as probable as the best")
    add("--typical-p", type=float, metavar="P", help="keep the most typical tokens up to this mass")
    add("--repetition-penalty", "--repeat-penalty", dest="repetition_penalty", type=float, metavar="X")
    add("--presence-penalty", type=float, metavar="X")
    add("--frequency-penalty", type=float, metavar="X")
    add("--logit-bias", action="append", type=_bias, metavar="ID=X", help="add X to a token's logit; -inf bans it")
    add("--seed", type=int, metavar="N", help="same seed, same tokens")
    add("-n", "--max-tokens", type=int, metavar="N", help="most tokens to generate")
    add("--stop", action="append", metavar="TEXT", help="end the answer before this text; may be repeated")
    add("--ignore-eos", action="store_const", const=True, help="go on after an end-of-generation token")
    add("--logprobs", type=int, metavar="N", help="report N alternatives per token (with --json)")


SAMPLING_NAMES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "stop",
    "ignore_eos",
    "logprobs",
)


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling options that were given, as arguments of `SamplingParams`."""
    given = {name: getattr(args, name) for name in SAMPLING_NAMES if getattr(args, name) is not None}
    if args.logit_bias:
        given["logit_bias"] = dict(args.logit_bias)
    return given


def _context(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number of tokens nor auto") from None


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no time above 0 s")
    return seconds


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form NAME=VALUE")
    return name, value


def _bias(text: str) -> tuple[int, float]:
    token_id, _, value = text.partition("=")
    try:
        return int(token_id), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form ID=NUMBER") from None
