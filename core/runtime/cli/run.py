"""Answer a prompt with a model, or chat with it when no prompt is given."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from runtime.cli.arguments import add_placement, add_sampling, add_weight_cache, model_path, placement, sampling
from runtime.cli.output import LoadProgress, emit, status
from runtime.cli.texts import read_standard_input, read_text
from runtime.errors import InvalidArgument

if TYPE_CHECKING:
    from runtime.engine.llm import LLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument(
        "text", nargs="?", metavar="PROMPT", help="the prompt; without one: chat, or read stdin if piped"
    )
    parser.add_argument("-m", "--model", metavar="PATH", help="GGUF file or Hugging Face directory (the demo model)")
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt, as an option")
    parser.add_argument("-f", "--file", metavar="PATH", help="read the prompt from a file")
    parser.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without a chat template")
    parser.add_argument("--chat-template", metavar="PATH", help="use the template of this file instead of the model's")
    add_placement(parser)
    add_weight_cache(parser)
    add_sampling(parser)
    group = parser.add_argument_group("output and checks")
    group.add_argument("--json", action="store_true", help="one JSON object per event on stdout")
    group.add_argument("-v", "--verbose", action="store_true", help="placement before, tokens per second after")
    group.add_argument("-q", "--quiet", action="store_true", help="no status line")
    group.add_argument("--check-tensors", action="store_true", help="refuse weights that hold NaN or infinity")


def run(args: argparse.Namespace) -> int:
    """Execute the verb; returns the exit code."""
    prompt = _prompt(args)
    interactive = prompt is None
    if interactive and args.json:
        raise InvalidArgument("--json needs a prompt", remedy="give one, or pipe it in")
    if args.raw and args.system is not None:
        raise InvalidArgument("--system has no place in a raw prompt", remedy="leave out --raw or --system")
    from runtime.engine.llm import LLM
    from runtime.engine.sampling_params import SamplingParams

    given = sampling(args)
    SamplingParams(**given)  # a wrong setting is told before a large model is loaded
    progress = LoadProgress()
    try:
        llm = LLM(
            model_path(args.model),
            **placement(args),
            weight_cache=args.weight_cache,
            max_num_seqs=1,
            check_tensors=args.check_tensors,
            chat_template=read_text(args.chat_template) if args.chat_template else None,
            progress=progress,
        )
    finally:
        progress.finish()
    with llm:
        _announce(llm, args)
        params = llm.default_sampling_params.with_(**given)
        from runtime.cli.generation import Session

        session = Session(llm, params, system=args.system, raw=args.raw, as_json=args.json, verbose=args.verbose)
        return session.chat() if prompt is None else session.answer(prompt)


def _prompt(args: argparse.Namespace) -> str | None:
    """The prompt from wherever it was given; None asks for a conversation."""
    given = [p for p in (args.text, args.prompt, args.file) if p is not None]
    if len(given) > 1:
        raise InvalidArgument("the prompt was given more than once", remedy="use one of PROMPT, --prompt and --file")
    if args.file is not None:
        return read_text(args.file)
    if given:
        return str(given[0])
    if not sys.stdin.isatty():
        text = read_standard_input()
        if not text.strip():
            raise InvalidArgument("there is no prompt: none was given and standard input is empty")
        return text.rstrip("\n")
    return None


def _announce(llm: LLM, args: argparse.Namespace) -> None:
    if args.json:
        emit({"event": "status", "lines": list(llm.status), **llm.loaded.to_json()})
    elif not args.quiet:
        for line in llm.status:
            status(line)
        if args.verbose:
            for line in llm.loaded.plan.describe():
                status(line)
